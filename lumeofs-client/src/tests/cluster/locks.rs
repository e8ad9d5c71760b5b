//! The masters' side of waits for locks.

use super::{Answer, World};
use crate::wait::now;
use lumeofs_base::{FsResult, InodeId, SessionId};
use lumeofs_lease::{LockVerdict, LockWish};
use lumeofs_proto::meta::{self, LockWait};
use std::time::Duration;

impl World {
    pub(super) fn lock_wait(&self, asked: &LockWait) -> FsResult<Answer> {
        let wish = LockWish {
            session: SessionId(asked.session),
            ino: InodeId(asked.ino),
            lock: postcard::from_bytes(&asked.lock).unwrap(),
            waited: Duration::from_millis(asked.waited_ms),
            just_to_know: asked.just_to_know,
        };
        if asked.gone {
            self.state.lock().locks.forget(&wish);
            return Ok(Answer::Verdict(meta::LockVerdict::default()));
        }
        let until = now() + Duration::from_millis(asked.wait_ms.into());
        let verdict = self.until(|state| {
            if let Err(error) = state.check_session(wish.session) {
                return Some(Err(error));
            }
            let verdict = state.locks.judge(&state.tables, now(), &wish);
            let waits = matches!(verdict, Ok(LockVerdict::Wait | LockVerdict::Recall(_)));
            (!waits || now() >= until).then_some(verdict)
        })?;
        Ok(Answer::Verdict(meta::LockVerdict {
            wait: matches!(verdict, LockVerdict::Wait | LockVerdict::Recall(_)),
            deadlock: verdict == LockVerdict::Deadlock,
        }))
    }
}
