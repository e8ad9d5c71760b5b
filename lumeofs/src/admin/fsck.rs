//! `lumeofs admin fsck`: metadata against datanodes.

use super::{Admin, call, masters, output};
use crate::exit::Unhealthy;
use lumeofs_base::{Code, FsError};
use lumeofs_proto::auth::Credentials;
use lumeofs_proto::control::fsck_event::Kind;
use lumeofs_proto::control::{FsckFinding, FsckRequest, FsckSummary};
use lumeofs_proto::grpc::error_of;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;

/// Longest time without a word. Looking for the paths of many files is the longest step.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Options of `lumeofs admin fsck`.
#[derive(clap::Args)]
#[command(after_help = "Looks, while the cluster is in use, for:
  missing, stale  an in-sync datanode lacks a chunk of a file, or has an older version of it than others
  deleted         a datanode has deleted a chunk that a file has
  orphan          a datanode has a chunk that no file has and that is not queued for deletion
  misplaced       a datanode has a chunk under another group than its file says
  no-group        a file has chunks in a group that does not exist
  metadata        tables of metadata contradict each other: names, link counts, parents, sizes, sessions
  unchecked       could not be looked at, and why

Only orphans are repaired. Exit codes: 0 nothing found or all repaired, 9 otherwise. docs/health.md says what to do.")]
pub(crate) struct Args {
    /// Queues orphans to be deleted
    #[arg(long)]
    repair: bool,
}

/// What came of it.
#[derive(Default)]
struct Outcome {
    findings: Vec<Value>,
    summary: Option<FsckSummary>,
    failure: Option<anyhow::Error>,
}

/// Runs the command.
pub(super) fn run(
    addresses: &[String],
    credentials: &Credentials,
    args: &Args,
    json: bool,
) -> anyhow::Result<()> {
    let asked = masters::survey(addresses, credentials);
    let leader = masters::leader(&asked, "metadata")?;
    let request = FsckRequest {
        repair: args.repair,
    };
    let outcome = call(&leader, credentials, |client| follow(client, request, json))?;
    output::status("");
    if let Some(error) = outcome.failure {
        return Err(error);
    }
    let summary = outcome.summary.ok_or_else(|| {
        let text = format!("master {leader} ended the check without a result: run it again");
        FsError::new(Code::Unavailable, text)
    })?;
    match json {
        true => output::json(&of_summary(&summary, &outcome.findings))?,
        false => show(&summary)?,
    }
    let open = summary.findings - summary.repaired.min(summary.findings);
    let left = open + summary.unchecked + summary.untold;
    match left {
        0 => Ok(()),
        _ => {
            let unchecked = summary.unchecked + summary.untold;
            let text =
                format!("{open} findings are not repaired, {unchecked} could not be checked");
            Err(Unhealthy(text).into())
        }
    }
}

/// Takes events to their end. Fails only if the check did not begin.
async fn follow(
    mut client: Admin,
    request: FsckRequest,
    json: bool,
) -> Result<Outcome, tonic::Status> {
    let mut events = client.fsck(request).await?.into_inner();
    let mut outcome = Outcome::default();
    loop {
        let event = match timeout(SILENCE_MAX, events.message()).await {
            Ok(Ok(Some(event))) => event,
            Ok(Ok(None)) => return Ok(outcome),
            Ok(Err(status)) => {
                outcome.failure = Some(error_of(&status).during("fsck").into());
                return Ok(outcome);
            }
            Err(_) => {
                let text = format!("the check is silent for {SILENCE_MAX:?}");
                outcome.failure = Some(FsError::new(Code::Timeout, text).into());
                return Ok(outcome);
            }
        };
        match event.kind {
            Some(Kind::Progress(progress)) => {
                let (step, done, all) = (progress.step, progress.done, progress.all);
                output::status(format_args!("{step}: {done} of {all}"));
            }
            Some(Kind::Finding(finding)) if json => outcome.findings.push(of_finding(&finding)),
            Some(Kind::Finding(finding)) => {
                output::status("");
                if let Err(error) = output::line(text_of(&finding)) {
                    outcome.failure = Some(error);
                    return Ok(outcome);
                }
            }
            Some(Kind::Summary(summary)) => outcome.summary = Some(summary),
            // Of a newer master.
            None => {}
        }
    }
}

fn text_of(finding: &FsckFinding) -> String {
    let mut text = format!("{:<10}", finding.kind);
    if finding.group > 0 {
        text.push_str(&format!(" group {}", finding.group));
    }
    if finding.chunk > 0 {
        text.push_str(&format!(" chunk {}", finding.chunk));
    }
    if finding.node > 0 {
        text.push_str(&format!(" on datanode {}", finding.node));
    }
    if !finding.path.is_empty() {
        text.push_str(&format!(" of {}", output::name(&finding.path)));
    } else if finding.inode > 0 {
        text.push_str(&format!(" of inode {}", finding.inode));
    }
    text.push_str(": ");
    text.push_str(&finding.text);
    text.trim_start().to_owned()
}

fn of_finding(finding: &FsckFinding) -> Value {
    json!({
        "kind": finding.kind, "group": finding.group, "chunk": finding.chunk, "datanode": finding.node,
        "inode": finding.inode, "path": output::json_name(&finding.path), "text": finding.text,
        "repaired": finding.repaired,
    })
}

fn of_summary(summary: &FsckSummary, findings: &[Value]) -> Value {
    json!({
        "chunks": summary.chunks, "holes": summary.holes, "groups": summary.groups,
        "findings": summary.findings, "repaired": summary.repaired, "unchecked": summary.unchecked,
        "untold": summary.untold, "deletions_held": summary.held, "metadata_index": summary.metadata_index, "list": findings,
    })
}

fn show(summary: &FsckSummary) -> anyhow::Result<()> {
    let metadata = match summary.metadata_index {
        0 => "metadata's own consistency was not checked".to_owned(),
        index => format!("metadata's own consistency was checked as of entry {index}"),
    };
    output::line(format_args!(
        "{} chunks of files in {} groups were compared, {} of them never written; {metadata}",
        summary.chunks, summary.groups, summary.holes
    ))?;
    if summary.held {
        output::line(
            "the masters were made from a dump: nothing is deleted at datanodes before --repair has looked at everything",
        )?;
    }
    output::line(format_args!(
        "{} findings, {} repaired, {} not checked, {} more not told",
        summary.findings, summary.repaired, summary.unchecked, summary.untold
    ))
}
