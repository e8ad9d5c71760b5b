//! Bad input and bad days: each gives, within seconds, an error that names cause and way out, and
//! nothing is lost.

#[path = "bad_days/attempt.rs"]
mod attempt;
#[path = "bad_days/damage.rs"]
mod damage;
#[path = "bad_days/disk.rs"]
mod disk;
#[path = "bad_days/disks.rs"]
mod disks;
#[path = "bad_days/input.rs"]
mod input;
#[path = "bad_days/names.rs"]
mod names;
#[path = "bad_days/outage.rs"]
mod outage;
#[path = "bad_days/servers.rs"]
mod servers;
#[path = "bad_days/wire.rs"]
mod wire;
