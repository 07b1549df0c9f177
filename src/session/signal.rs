// SPDX-License-Identifier: MPL-2.0
//! How a model's thread is told that there may be something to do.

use std::sync::{Condvar, Mutex, PoisonError};

use super::locked;

/// A counter that can be waited on; its lock is a leaf and may be taken under any other.
#[derive(Default)]
pub(super) struct Signal {
    count: Mutex<u64>,
    raised: Condvar,
}

impl Signal {
    pub(super) fn raise(&self) {
        *locked(&self.count) += 1;
        self.raised.notify_all();
    }

    pub(super) fn count(&self) -> u64 {
        *locked(&self.count)
    }

    /// Waits until the count is no longer `seen`.
    pub(super) fn wait_past(&self, seen: u64) {
        let mut count = locked(&self.count);
        while *count == seen {
            count = self.raised.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
