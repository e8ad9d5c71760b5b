//! `lumeofs setup`, and mounts by mount(8) through the helper that it installs: options, fstab, remount, a mount
//! process that was killed.

#[path = "install/mounts.rs"]
mod mounts;
#[path = "install/setup.rs"]
mod setup;
#[path = "install/site.rs"]
mod site;
