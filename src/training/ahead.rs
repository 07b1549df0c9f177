// SPDX-License-Identifier: MPL-2.0
//! Training data made ahead of the steps that use it, on threads of their own: drawing clips takes many times as long as a step
//! on a GPU.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

/// Items that wait on each thread.
const WAITING: usize = 3;

/// Numbered items, which several makers make in turn.
pub(super) struct Ahead<T> {
    lanes: Vec<Receiver<T>>,
    threads: Vec<JoinHandle<()>>,
    first: u64,
}

impl<T: Send + 'static> Ahead<T> {
    /// The makers begin with item `first`; each is asked for every so many-th item, in order.
    pub fn new<F: FnMut(u64) -> T + Send + 'static>(makers: Vec<F>, first: u64) -> Self {
        let count = makers.len();
        let (lanes, threads) = (first..)
            .zip(makers)
            .map(|(mut number, mut make)| {
                let (made, lane) = sync_channel(WAITING);
                let thread = std::thread::spawn(move || {
                    // Whoever drops the receiving end wants no more.
                    while made.send(make(number)).is_ok() {
                        number += count as u64;
                    }
                });
                (lane, thread)
            })
            .unzip();
        Self { lanes, threads, first }
    }

    /// Item `number`; numbers have to be asked for in order.
    ///
    /// # Errors
    /// When its maker has panicked.
    pub fn take(&mut self, number: u64) -> anyhow::Result<T> {
        let lane = (number - self.first) as usize % self.lanes.len();
        self.lanes[lane].recv().map_err(|_| anyhow::anyhow!("a thread that draws clips has ended"))
    }
}

impl<T> Drop for Ahead<T> {
    /// Waits for the makers: one that still computes while the process ends finds libtorch half torn down.
    fn drop(&mut self) {
        self.lanes.clear();
        for thread in self.threads.drain(..) {
            // A maker's panic has been told to whoever asked for its item.
            let _ = thread.join();
        }
    }
}

/// How many threads make data ahead for a device: none for the CPU, whose cores train.
pub(super) fn makers(device: tch::Device) -> usize {
    match device {
        tch::Device::Cpu => 0,
        _ => std::thread::available_parallelism()
            .map_or(1, |cores| cores.get().saturating_sub(2).max(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_in_order_from_several_makers() {
        let makers: Vec<_> = (0..3u64).map(|maker| move |number: u64| (maker, number)).collect();
        let mut ahead = Ahead::new(makers, 7);
        for number in 7..40 {
            assert_eq!(ahead.take(number).unwrap(), ((number - 7) % 3, number));
        }
        // No maker is left that could still hold anything.
        let held = std::sync::Arc::new(());
        let makers = (0..2).map(|_| {
            let held = held.clone();
            move |number: u64| (std::sync::Arc::strong_count(&held), number)
        });
        drop(Ahead::new(makers.collect(), 0));
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
        let failing = vec![|number: u64| assert!(number < 2)];
        let mut ahead = Ahead::new(failing, 0);
        assert!(ahead.take(0).is_ok() && ahead.take(1).is_ok());
        assert!(ahead.take(2).is_err());
    }
}
