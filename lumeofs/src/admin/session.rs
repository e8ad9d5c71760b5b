//! `lumeofs admin session`: who uses the cluster, and ending one that must not go on.

use super::call;
use crate::output;
use lumeofs_base::{Code, FsError};
use lumeofs_proto::auth::Credentials;
use lumeofs_proto::control::{EvictSessionRequest, Session, SessionsRequest};
use serde_json::json;

#[derive(clap::Subcommand)]
pub(super) enum Action {
    /// All sessions: who opened each, its age, how long it was silent, how many files it holds open and has locked
    List,
    /// Ends a session now, as a minute of silence does
    ///
    /// Nothing more is taken from it, and once it is no longer listed, no datanode takes its writes either. A mount whose
    /// session was ended fails once, with EIO, on each file with unsynced writes, then goes on under a new session.
    Evict {
        /// Number of the session, as `list` shows it
        id: String,
    },
}

/// Runs the command.
pub(super) fn run(
    action: &Action,
    masters: &[String],
    credentials: &Credentials,
    json: bool,
) -> anyhow::Result<()> {
    match action {
        Action::List => show(&list(masters, credentials)?, json),
        Action::Evict { id } => {
            let session = parse(id)?;
            at_leader(masters, |master| {
                call(master, credentials, |mut client| async move {
                    client.evict_session(EvictSessionRequest { session }).await
                })
            })?;
            if json {
                return output::json(&json!({"evicted": session}));
            }
            output::line(format_args!("session {session} has ended"))
        }
    }
}

fn parse(id: &str) -> Result<u64, FsError> {
    let digits = id.strip_prefix('S').unwrap_or(id);
    digits.parse().map_err(|_| {
        let text =
            format!("session {id:?}: want a number as `lumeofs admin session list` shows it");
        FsError::new(Code::Invalid, text)
    })
}

fn list(masters: &[String], credentials: &Credentials) -> Result<Vec<Session>, FsError> {
    at_leader(masters, |master| {
        call(master, credentials, |mut client| async move {
            let reply = client.sessions(SessionsRequest {}).await?;
            Ok(reply.into_inner().sessions)
        })
    })
}

/// Asks the masters in turn until one is the leader.
fn at_leader<T>(
    masters: &[String],
    ask: impl Fn(&str) -> Result<T, FsError>,
) -> Result<T, FsError> {
    let mut last = FsError::new(Code::Invalid, "the list of masters is empty");
    for master in masters {
        match ask(master) {
            Err(error) if error.code == Code::NotFound => return Err(error),
            Err(error) => last = error,
            Ok(answer) => return Ok(answer),
        }
    }
    Err(last)
}

fn show(sessions: &[Session], json: bool) -> anyhow::Result<()> {
    if json {
        let session = |session: &Session| {
            json!({
                "id": session.id, "description": session.description, "age_ms": session.age_ms,
                "silent_ms": session.silent_ms, "opens": session.opens, "locked": session.locked, "ending": session.is_ending,
            })
        };
        return output::json(&sessions.iter().map(session).collect::<Vec<_>>());
    }
    let row = |session: &Session| {
        vec![
            session.id.to_string(),
            output::name(session.description.as_bytes()),
            format!("{} s", session.age_ms / 1000),
            format!("{} ms", session.silent_ms),
            session.opens.to_string(),
            session.locked.to_string(),
            if session.is_ending { "ending" } else { "live" }.to_owned(),
        ]
    };
    let rows: Vec<_> = sessions.iter().map(row).collect();
    output::table(
        &[
            "SESSION", "CLIENT", "AGE", "SILENT", "OPEN", "LOCKED", "STATE",
        ],
        &rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_named_by_its_number_with_or_without_the_letter() {
        assert_eq!(parse("17").unwrap(), 17);
        assert_eq!(parse("S17").unwrap(), 17);
        assert_eq!(parse("mount").unwrap_err().code, Code::Invalid);
    }
}
