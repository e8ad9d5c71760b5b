//! Health for people and for programs.

use super::{Round, masters};
use crate::output;
use lumeofs_proto::control::health_reply::State;
use lumeofs_proto::control::{GroupHealth, HealthReply, LevelCount, Repair};
use serde_json::{Value, json};

/// Groups that are shown to people.
const GROUPS_SHOWN: usize = 12;

/// A state's name.
pub(super) fn name(state: State) -> &'static str {
    match state {
        State::Unknown => "unknown",
        State::Healthy => "healthy",
        State::Degraded => "degraded",
        State::Critical => "critical",
        State::Lost => "lost",
    }
}

fn meaning(state: State) -> &'static str {
    match state {
        State::Unknown => "nobody can tell",
        State::Healthy => "everything is as it should be",
        State::Degraded => {
            "everything known is served, with less in reserve than wanted or not all known yet"
        }
        State::Critical => {
            "something has only its last copy, cannot be written, or a Raft group has no leader"
        }
        State::Lost => "something has no live copy; it comes back only if its datanodes do",
    }
}

fn ids(nodes: &[u64]) -> String {
    let nodes: Vec<_> = nodes.iter().map(u64::to_string).collect();
    nodes.join(", ")
}

/// Prints it.
pub(super) fn people(round: &Round) -> anyhow::Result<()> {
    let state = round.state();
    output::line(format_args!(
        "state      {}: {}",
        name(state),
        meaning(state)
    ))?;
    show_masters(round)?;
    let Ok(data) = &round.data else {
        return Ok(());
    };
    show_chunks(data)?;
    show_repairs(data)?;
    show_reserve(round, data)?;
    show_space(round, data)
}

fn show_masters(round: &Round) -> anyhow::Result<()> {
    let answering = round.masters.iter().filter(|master| master.raft.is_ok());
    let (answering, all) = (answering.count(), round.masters.len());
    output::line(format_args!("masters    {answering} of {all} answer"))?;
    for master in &round.masters {
        if let Err(error) = &master.raft {
            output::line(format_args!("           {error}"))?;
        }
    }
    for (group, view) in masters::groups(&round.masters) {
        match view.leader {
            Some(leader) => output::line(format_args!("           {group}: {leader} leads"))?,
            None => output::line(format_args!("           {group}: no leader"))?,
        }
        for (node, lag) in view.lagging {
            let text = format!("           {group}: master {node} lags by {lag} entries");
            output::line(text)?;
        }
    }
    Ok(())
}

fn show_chunks(data: &HealthReply) -> anyhow::Result<()> {
    let partly = match data.partial {
        true => "  (partial: not every datanode has reported to this leader yet)",
        false => "",
    };
    let (silent, nodes) = (data.silent.len(), data.datanodes);
    output::line(format_args!(
        "datanodes  {nodes}, {silent} of them silent{partly}"
    ))?;
    if silent > 0 {
        output::line(format_args!("           silent: {}", ids(&data.silent)))?;
    }
    if !data.sought.is_empty() {
        let groups: Vec<_> = data.sought.iter().map(u32::to_string).collect();
        output::line(format_args!(
            "           the masters were made from a dump: groups {} wait for datanodes that know their members",
            groups.join(", ")
        ))?;
    }
    if data.held {
        output::line(
            "           the masters were made from a dump: nothing is deleted before `lumeofs admin fsck --repair`",
        )?;
    }
    for trouble in &data.troubles {
        let (node, trouble) = (trouble.node, &trouble.trouble);
        output::line(format_args!("           datanode {node}: {trouble}"))?;
    }
    for (level, count) in levels(data) {
        let LevelCount { groups, chunks } = count;
        let is_shown = groups > 0 || level == "full";
        if is_shown {
            output::line(format_args!(
                "{:<10} {chunks} {level}, in {groups} groups",
                if level == "full" { "chunks" } else { "" }
            ))?;
        }
    }
    for group in data.groups.iter().take(GROUPS_SHOWN) {
        output::line(format_args!("           {}", of_group(group)))?;
    }
    if data.groups.len() > GROUPS_SHOWN {
        let more = data.groups.len() - GROUPS_SHOWN;
        output::line(format_args!(
            "           and {more} groups more: --json has them"
        ))?;
    }
    show_files(data)
}

fn of_group(group: &GroupHealth) -> String {
    let mut text = format!(
        "group {} {}: {} of {} copies",
        group.group,
        group.level,
        group.attested.len(),
        group.wanted,
    );
    if !group.missing.is_empty() {
        text.push_str(&format!(", missing on {}", ids(&group.missing)));
    }
    if group.damaged_blocks > 0 {
        text.push_str(&format!(
            ", {} blocks damaged and not repaired yet",
            group.damaged_blocks
        ));
    }
    if group.attested.len() < group.write_quorum as usize {
        text.push_str(", not writable");
    }
    if !group.possible.is_empty() {
        text.push_str(&format!(", not heard from {}", ids(&group.possible)));
    }
    text
}

fn show_files(data: &HealthReply) -> anyhow::Result<()> {
    if data.files_hurt == 0 && !data.files_unfinished {
        return Ok(());
    }
    let least = if data.files_unfinished {
        "at least "
    } else {
        ""
    };
    output::line(format_args!(
        "files      {least}{} with chunks of the last copy or none",
        data.files_hurt
    ))?;
    for file in &data.files {
        let path = match file.path.is_empty() {
            true => format!("inode {}", file.inode),
            false => output::name(&file.path),
        };
        output::line(format_args!("           {}: {path}", file.level))?;
    }
    Ok(())
}

fn show_repairs(data: &HealthReply) -> anyhow::Result<()> {
    if data.repairs.is_empty() {
        return Ok(());
    }
    output::line(format_args!("repairs    {} under way", data.repairs.len()))?;
    for repair in data.repairs.iter().take(GROUPS_SHOWN) {
        output::line(format_args!("           {}", of_repair(repair)))?;
    }
    Ok(())
}

fn of_repair(repair: &Repair) -> String {
    let progress = repair.progress.unwrap_or_default();
    let mut text = format!(
        "group {} to datanode {}: {} of {} chunks, {} copied",
        repair.group,
        progress.node,
        progress.chunks_done,
        progress.chunks,
        output::size(progress.bytes_copied)
    );
    if let Ok(rate) = u64::try_from(repair.bytes_per_s) {
        text.push_str(&format!(", {}/s", output::size(rate)));
    }
    match u64::try_from(repair.seconds_left) {
        Ok(left) => text.push_str(&format!(", {left} s left")),
        Err(_) => text.push_str(", time left not known yet"),
    }
    text
}

fn show_reserve(round: &Round, data: &HealthReply) -> anyhow::Result<()> {
    let may_fail = |count: i64, too_late: &str| match u64::try_from(count) {
        Ok(count) => format!("any {count} datanodes may fail"),
        Err(_) => too_late.to_owned(),
    };
    let to_keep = may_fail(data.survives_for_data, "some data has no live copy now");
    let to_write = may_fail(data.survives_for_writes, "something cannot be written now");
    output::line(format_args!("reserve    to keep all data: {to_keep}"))?;
    output::line(format_args!("           to write everything: {to_write}"))?;
    let spare = masters::spare(&round.masters);
    output::line(format_args!("           any {spare} masters may fail"))?;
    for zone in &data.zones {
        if zone.groups_lost + zone.groups_unwritable > 0 {
            output::line(format_args!(
                "           without zone {:?}: {} groups have no copy, {} cannot be written",
                zone.zone, zone.groups_lost, zone.groups_unwritable
            ))?;
        }
    }
    Ok(())
}

fn show_space(round: &Round, data: &HealthReply) -> anyhow::Result<()> {
    for node in &data.filling {
        let (id, used, free) = (node.node, node.used_percent, output::size(node.free_bytes));
        output::line(format_args!(
            "space      datanode {id}: {used} % used, {free} free"
        ))?;
    }
    for (address, used, free, short) in masters::filling(&round.masters) {
        let free = output::size(free);
        let short = if short { ", takes no new files" } else { "" };
        output::line(format_args!(
            "space      master {address}: {used} % used, {free} free{short}"
        ))?;
    }
    output::line(format_args!("sessions   {}", data.sessions))
}

fn levels(data: &HealthReply) -> [(&'static str, LevelCount); 5] {
    [
        ("full", data.full),
        ("reduced", data.reduced),
        ("last copy", data.last_copy),
        ("lost", data.lost),
        ("unattested", data.unattested),
    ]
    .map(|(level, count)| (level, count.unwrap_or_default()))
}

/// The same for programs.
pub(super) fn json(round: &Round) -> Value {
    let masters: Vec<_> = round
        .masters
        .iter()
        .map(|master| {
            let error = master.raft.as_ref().err().map(ToString::to_string);
            json!({"address": master.address, "answers": error.is_none(), "error": error})
        })
        .collect();
    let groups: Vec<_> = masters::groups(&round.masters)
        .into_iter()
        .map(
            |(group, view)| json!({"group": group, "leader": view.leader, "lagging": view.lagging}),
        )
        .collect();
    let filling: Vec<_> = masters::filling(&round.masters)
        .into_iter()
        .map(|(address, used, free, short)| {
            json!({"master": address, "used_percent": used, "free_bytes": free, "short": short})
        })
        .collect();
    let mut value = json!({
        "state": name(round.state()),
        "masters": masters,
        "raft": groups,
        "masters_that_may_fail": masters::spare(&round.masters),
        "masters_filling": filling,
    });
    match &round.data {
        Ok(data) => value["data"] = of_data(data),
        Err(error) => value["error"] = error.to_string().into(),
    }
    value
}

fn of_data(data: &HealthReply) -> Value {
    let known = |number: i64| u64::try_from(number).ok();
    let mut chunks = json!({});
    for (level, count) in levels(data) {
        chunks[level.replace(' ', "_")] = json!({"chunks": count.chunks, "groups": count.groups});
    }
    json!({
        "answered_by": data.answered_by,
        "partial": data.partial,
        "datanodes": data.datanodes, "groups_sought": data.sought, "deletions_held": data.held,
        "silent": data.silent,
        "troubles": data.troubles.iter().map(|trouble| json!({
            "datanode": trouble.node, "trouble": trouble.trouble,
        })).collect::<Vec<_>>(),
        "levels": chunks,
        "groups": data.groups.iter().map(|group| json!({
            "group": group.group, "level": group.level, "attested": group.attested, "possible": group.possible,
            "missing": group.missing, "wanted": group.wanted, "write_quorum": group.write_quorum,
            "chunks": group.chunks, "bytes": group.bytes, "damaged_blocks": group.damaged_blocks,
        })).collect::<Vec<_>>(),
        "files_hurt": data.files_hurt,
        "files_unfinished": data.files_unfinished,
        "files": data.files.iter().map(|file| json!({
            "inode": file.inode, "path": output::json_name(&file.path), "group": file.group, "level": file.level,
        })).collect::<Vec<_>>(),
        "repairs": data.repairs.iter().map(|repair| {
            let progress = repair.progress.unwrap_or_default();
            json!({
                "group": repair.group, "datanode": progress.node, "chunks_done": progress.chunks_done,
                "chunks": progress.chunks, "bytes_copied": progress.bytes_copied,
                "chunks_per_s": known(repair.chunks_per_s), "bytes_per_s": known(repair.bytes_per_s),
                "seconds_left": known(repair.seconds_left),
            })
        }).collect::<Vec<_>>(),
        "datanodes_that_may_fail_for_data": known(data.survives_for_data),
        "datanodes_that_may_fail_for_writes": known(data.survives_for_writes),
        "zones": data.zones.iter().map(|zone| json!({
            "zone": zone.zone, "datanodes": zone.nodes, "groups_lost_without": zone.groups_lost,
            "groups_unwritable_without": zone.groups_unwritable,
        })).collect::<Vec<_>>(),
        "filling": data.filling.iter().map(|node| json!({
            "datanode": node.node, "used_percent": node.used_percent, "free_bytes": node.free_bytes,
        })).collect::<Vec<_>>(),
        "sessions": data.sessions,
    })
}
