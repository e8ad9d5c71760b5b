//! Drivers that break a rule, to see that the simulation would notice.

/// What is done wrong. The cores stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A change is acknowledged before everyone has heard of it.
    RecallsNotAwaited,
    /// The holder's term counts from the answer to a poll, not from its sending.
    TermFromTheAnswer,
    /// A grant that was overtaken by a recall is taken for a newer one.
    OldGrantsCount,
    /// A write lease is given back with what was written still in memory.
    DirtyDataGivenBack,
    /// What own changes touch is answered from memory meanwhile.
    OwnChangesNotBusy,
    /// A holder whose leases are void goes on with them.
    VoidNotHeeded,
    /// A new leader does not wait until it has heard of every session.
    NoWindow,
    /// A release takes away whatever right there is.
    ReleaseOfLaterGrants,
    /// A session is closed while the datanodes still take its writes.
    NoFence,
    /// A session that was ended is closed while it may answer from memory.
    TermOfEndedNotAwaited,
    /// The answer is read first, and the right to cache it is given later.
    GrantAfterReading,
    /// What an own change did is not entered in memory.
    OwnChangesForgotten,
    /// A query shows what a writer has not published.
    WritersNotAsked,
    /// A query does not wait until the leader knows what was made.
    MadeNotAwaited,
    /// A directory is given back before the leader knows what was made in it.
    MadeNotTold,
    /// A directory is moved or removed under its maker.
    MovedNotAsked,
    /// A new leader is not told of leases on what the one before did not know.
    MadeNotAsserted,
}
