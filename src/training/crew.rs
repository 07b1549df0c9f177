// SPDX-License-Identifier: MPL-2.0
//! Workers that share every step of a training.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use anyhow::{Context, Result};
use tch::Device;

use crate::torch;

/// How many workers are meant: 0 for one a core, or one on a GPU.
pub fn worker_count(workers: usize, device: Device) -> usize {
    match (workers, device) {
        (0, Device::Cpu) => tch::get_num_threads().max(1) as usize,
        (0, _) => 1,
        (count, _) => count,
    }
}

/// The loss, and those of the lesson beside it, naming and outlining, where there is one.
pub(super) type Losses = [f64; 3];

/// A share of every step.
pub(super) trait Work: Send {
    /// Adds the gradients of the batch of that number to the parameters', and returns its losses.
    ///
    /// # Errors
    /// What stands in the way of that.
    fn work(&mut self, number: u64) -> Result<Losses>;
}

/// Workers on threads of their own. Models this small leave most of a core idle when their operations are split
/// over several; batches in parallel do not.
pub(super) struct Crew {
    orders: Vec<Sender<u64>>,
    losses: Receiver<Result<Losses>>,
}

impl Crew {
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        workers: Vec<impl Work + 'scope>,
    ) -> Self {
        let (report, losses) = channel();
        let orders = workers
            .into_iter()
            .map(|mut worker| {
                let (order, orders) = channel();
                let report = report.clone();
                scope.spawn(move || {
                    torch::flush_denormals();
                    while let Ok(number) = orders.recv() {
                        if report.send(worker.work(number)).is_err() {
                            return;
                        }
                    }
                });
                order
            })
            .collect();
        Self { orders, losses }
    }

    /// Lets every worker add the gradients of one batch; returns the mean losses.
    ///
    /// # Errors
    /// Those of the workers.
    pub fn step(&self, step: u64) -> Result<Losses> {
        let count = self.orders.len() as u64;
        for (worker, order) in (0..).zip(&self.orders) {
            order.send(step * count + worker).context("a training thread has ended")?;
        }
        let mut sum = Losses::default();
        for _ in &self.orders {
            let losses = self.losses.recv().context("a training thread has ended")??;
            sum = std::array::from_fn(|i| sum[i] + losses[i] / count as f64);
        }
        Ok(sum)
    }
}
