//! A name and a time that one mount writes and the others watch, without opening anything.

use lumeofs_tests::coherence::{
    Action, Event, check_linear, read_name, read_time, unique_value, write_name, write_time,
};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const NAME: &str = "name";
const TIME: &str = "time";
/// Between two calls.
const PACE: Duration = Duration::from_millis(5);

/// What was done and seen: of the name, and of the time.
#[derive(Debug, Default)]
pub(crate) struct Watching([Mutex<Vec<Event>>; 2]);

impl Watching {
    /// With first values.
    pub(crate) fn new(directory: &Path) -> Self {
        let watching = Self::default();
        std::fs::write(directory.join(TIME), "").expect("a new file");
        watching.write_once(directory);
        watching
    }

    fn note(&self, register: usize, by: usize, begun: Instant, action: Action) {
        let ended = Some(Instant::now());
        let event = Event {
            begun,
            ended,
            action,
            by,
        };
        self.0[register].lock().unwrap().push(event);
    }

    fn write_once(&self, directory: &Path) {
        let (begun, value) = (Instant::now(), unique_value());
        let (name, new) = (directory.join(NAME), directory.join("new"));
        write_name(&name, &new, value).expect("the name can be written");
        self.note(0, 0, begun, Action::Write(value));
        let (begun, value) = (Instant::now(), unique_value());
        write_time(&directory.join(TIME), value).expect("the time can be set");
        self.note(1, 0, begun, Action::Write(value));
    }

    /// Checks that a single copy of each explains everything, and says how much that was.
    pub(crate) fn check(&self) -> String {
        let events = self
            .0
            .each_ref()
            .map(|events| events.lock().unwrap().clone());
        for (events, register) in events.iter().zip([NAME, TIME]) {
            check_linear(events).unwrap_or_else(|told| panic!("the {register}: {told}"));
        }
        format!("{} calls watched", events[0].len() + events[1].len())
    }
}

/// Writes both again and again.
pub(crate) fn write(watching: &Watching, directory: &Path, go_on: impl Fn() -> bool) {
    while go_on() {
        watching.write_once(directory);
        std::thread::sleep(PACE);
    }
}

/// Looks at both again and again, and returns how long the longest call took. If it `may_fail`, calls that fail have seen nothing.
pub(crate) fn watch(
    watching: &Watching,
    directory: &Path,
    may_fail: bool,
    go_on: impl Fn() -> bool,
) -> Duration {
    let by = if may_fail { 2 } else { 1 };
    let mut longest = Duration::ZERO;
    while go_on() {
        for (register, read) in [read_name, read_time].into_iter().enumerate() {
            let begun = Instant::now();
            let value = read(&directory.join([NAME, TIME][register]));
            longest = longest.max(begun.elapsed());
            match value {
                Ok(value) => watching.note(register, by, begun, Action::Read(value)),
                Err(errno) => assert!(may_fail, "{errno}"),
            }
        }
        std::thread::sleep(PACE);
    }
    longest
}
