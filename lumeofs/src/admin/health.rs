//! `lumeofs admin health`: whether the data is safe, from what is attested now, never from what was known before.

mod show;

use super::masters::{self, Asked, Severity};
use super::{call, output};
use crate::exit::Unhealthy;
use lumeofs_base::FsError;
use lumeofs_proto::auth::Credentials;
use lumeofs_proto::control::health_reply::State;
use lumeofs_proto::control::{HealthReply, HealthRequest};
use std::time::Duration;

/// Between two answers with `--watch`.
const PAUSE: Duration = Duration::from_secs(1);

/// Options of `lumeofs admin health`.
#[derive(clap::Args)]
#[command(after_help = "States:
  healthy   all chunks have all their copies, all masters answer
  degraded  everything is served, with less in reserve than wanted, or not everybody has reported yet
  critical  something has only its last copy, or cannot be written, or a Raft group has no leader
  lost      something has no live copy; it comes back if its datanodes do

Exit codes: 0 healthy, 9 anything else, 7 if nobody can tell since no master leads.
docs/health.md says what to do.")]
pub(crate) struct Args {
    /// Shows it anew every second until interrupted; with --json one line each
    #[arg(long)]
    watch: bool,
    /// How many files to name that have chunks with their last copy or none
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    paths: u32,
}

/// All that was learned in one round.
struct Round {
    masters: Vec<Asked>,
    /// What the controller's leader says.
    data: Result<HealthReply, FsError>,
}

/// Runs the command.
pub(super) fn run(
    masters: &[String],
    credentials: &Credentials,
    args: &Args,
    json: bool,
) -> anyhow::Result<()> {
    if !args.watch {
        let round = Round::ask(masters, credentials, args.paths);
        match json {
            true => output::json(&show::json(&round))?,
            false => show::people(&round)?,
        }
        return round.verdict();
    }
    loop {
        let round = Round::ask(masters, credentials, args.paths);
        if json {
            output::line(show::json(&round))?;
        } else {
            output::clear()?;
            show::people(&round)?;
            if let Err(error) = &round.data {
                output::line(format_args!("           {error}"))?;
            }
        }
        std::thread::sleep(PAUSE);
    }
}

impl Round {
    fn ask(masters: &[String], credentials: &Credentials, paths_max: u32) -> Self {
        let masters = masters::survey(masters, credentials);
        let data = masters::leader(&masters, "controller").and_then(|leader| {
            call(&leader, credentials, |mut client| async move {
                let reply = client.health(HealthRequest { paths_max }).await;
                reply.map(tonic::Response::into_inner)
            })
        });
        Self { masters, data }
    }

    /// The whole in one word. `Unknown` without an answer: what was known before is not told.
    fn state(&self) -> State {
        let Ok(data) = &self.data else {
            return State::Unknown;
        };
        let of_masters = match masters::severity(&self.masters) {
            Severity::Fine => State::Healthy,
            Severity::Degraded => State::Degraded,
            Severity::Critical => State::Critical,
        };
        worse(data.state(), of_masters)
    }

    /// An error unless it is healthy.
    fn verdict(self) -> anyhow::Result<()> {
        let state = self.state();
        match (state, self.data) {
            (State::Healthy, _) => Ok(()),
            (_, Err(error)) => Err(error.into()),
            (state, Ok(_)) => {
                Err(Unhealthy(format!("the cluster is {}", show::name(state))).into())
            }
        }
    }
}

/// The worse of two states. One that this build does not know is no good news.
fn worse(one: State, other: State) -> State {
    match (one, other) {
        (State::Unknown, _) | (_, State::Unknown) => State::Unknown,
        (one, other) if one as i32 >= other as i32 => one,
        (_, other) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::Code;

    #[test]
    fn without_an_answer_the_state_is_not_known_and_the_command_fails() {
        let round = Round {
            masters: Vec::new(),
            data: Err(FsError::new(Code::Unavailable, "no leader")),
        };
        assert_eq!(round.state(), State::Unknown);
        assert!(round.verdict().is_err());
    }

    #[test]
    fn the_worse_of_data_and_masters_counts() {
        assert_eq!(worse(State::Healthy, State::Degraded), State::Degraded);
        assert_eq!(worse(State::Lost, State::Critical), State::Lost);
        assert_eq!(worse(State::Unknown, State::Healthy), State::Unknown);
    }
}
