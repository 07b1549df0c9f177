// SPDX-License-Identifier: MPL-2.0
//! Several chunks denoised together, each some steps further than the next: the batching of steps of StreamDiffusion (Kodaira et
//! al., arXiv 2312.12491), laid along the time axis, so that all of them look at each other as the frames of one window.
//!
//! A chunk may be short, as it is not alone in its window: it waits for fewer frames of its own, and what it takes to
//! denoise it is spread over the time in which the next ones come in. On a GPU one large evaluation costs hardly more than a
//! small one. It asks for a transformer that was trained with a noise level for each frame.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use super::FolderInfo;
use super::continuation::{Decoded, Stopwatch, StreamState, last_frames, wait_for};
use super::denoise::{Denoiser, noise_at_step};
use crate::error::Result;
use crate::schedulers::{Schedule, Solver};

/// One chunk on its way.
#[derive(Debug)]
struct Flight {
    /// `[1, z, t, h, w]`, at the noise level of the solver's next step.
    latents: Tensor,
    solver: Solver,
    /// Of its noise.
    seed: u64,
}

impl Flight {
    fn is_clean(&self) -> bool {
        self.solver.timestep().is_none()
    }

    fn frames(&self) -> i64 {
        self.latents.size()[2]
    }
}

/// Chunks on their way, the first the furthest.
#[derive(Debug, Default)]
pub(super) struct Flights {
    chunks: VecDeque<Flight>,
    /// Time spent on them since the last one was finished.
    spent: Duration,
}

impl Flights {
    /// That of the first chunk; `None` when nothing is on its way.
    pub fn schedule(&self) -> Option<&Schedule> {
        Some(self.chunks.front()?.solver.schedule())
    }

    fn latent_frames(&self) -> i64 {
        self.chunks.iter().map(Flight::frames).sum()
    }
}

impl FolderInfo {
    /// Whether several chunks can be denoised together.
    pub fn can_stagger(&self) -> bool {
        self.expand_timesteps
            && self.transformer_2.is_none()
            && !self.knows_by_pixels()
            && self.transformer.patch_size[0] == 1
    }

    /// Latent frames of each of `depth` chunks that are denoised together: as many as fill a window behind what is known.
    pub fn staggered_latent_frames(&self, depth: i64) -> i64 {
        ((self.window_latent_frames() - self.context_latent_frames()) / depth.max(1)).max(1)
    }
}

impl StreamState {
    /// Sends off a chunk to follow `guide` `[1, z, t, h, w]` from `begin_index` on, and goes on with all that are on their way
    /// until fewer than `depth` are; those that are finished come out.
    ///
    /// # Errors
    /// [`crate::error::Error::Cancelled`], after which the stream can't go on.
    pub fn send_off(
        &mut self,
        denoiser: &Denoiser<'_>,
        (guide, begin_index, seed): (&Tensor, usize, u64),
        (flights, depth): (&mut Flights, usize),
    ) -> Result<Vec<Decoded>> {
        let new = (flights.latent_frames(), guide.size()[2]);
        let noise = self.noise_for(denoiser.pipeline, seed, new, 0);
        let guide = guide.to_kind(Kind::Float);
        flights.chunks.push_back(Flight {
            latents: denoiser.schedule.add_noise(&guide, &noise, begin_index),
            solver: denoiser.schedule.start(begin_index),
            seed,
        });
        let steps = denoiser.schedule.len() - begin_index;
        for _ in 0..steps.div_ceil(depth) {
            self.step_all(denoiser, flights)?;
        }
        let mut finished = Vec::new();
        while flights
            .chunks
            .front()
            .is_some_and(|first| first.is_clean() || flights.chunks.len() >= depth)
        {
            finished.extend(self.land(denoiser, flights)?);
        }
        Ok(finished)
    }

    /// Finishes all that are on their way.
    ///
    /// # Errors
    /// As [`StreamState::send_off`].
    pub fn bring_in(
        &mut self,
        denoiser: &Denoiser<'_>,
        flights: &mut Flights,
    ) -> Result<Vec<Decoded>> {
        let mut finished = Vec::new();
        while let Some(decoded) = self.land(denoiser, flights)? {
            finished.push(decoded);
        }
        Ok(finished)
    }

    /// The first chunk, denoised as far as it still has to be and decoded.
    fn land(&mut self, denoiser: &Denoiser<'_>, flights: &mut Flights) -> Result<Option<Decoded>> {
        while flights.chunks.front().is_some_and(|first| !first.is_clean()) {
            self.step_all(denoiser, flights)?;
        }
        let Some(Flight { latents, .. }) = flights.chunks.pop_front() else { return Ok(None) };
        let mut stopwatch = Stopwatch(Instant::now());
        let video = self.put_next(denoiser.pipeline, &latents, denoiser.cancel)?;
        let denoise = std::mem::take(&mut flights.spent);
        Ok(Some(Decoded { video, denoise, decode: stopwatch.lap() }))
    }

    /// One step of every chunk, in one evaluation behind what is known.
    fn step_all(&self, denoiser: &Denoiser<'_>, flights: &mut Flights) -> Result<()> {
        if flights.chunks.iter().all(Flight::is_clean) {
            return Ok(());
        }
        let mut stopwatch = Stopwatch(Instant::now());
        let info = denoiser.pipeline.info();
        let room = (info.window_latent_frames() - flights.latent_frames()).max(1);
        let context = self.context().and_then(|context| last_frames(context, room));
        let known = context.as_ref().map_or(0, |context| context.size()[2]);
        let mut latents: Vec<&Tensor> = context.iter().collect();
        latents.extend(flights.chunks.iter().map(|flight| &flight.latents));
        let latents = Tensor::cat(&latents, 2);
        let timesteps = flights.chunks.iter().flat_map(|flight| {
            let timestep = flight.solver.timestep().unwrap_or(0.0);
            std::iter::repeat_n(timestep, flight.frames() as usize)
        });
        let timesteps: Vec<f32> =
            std::iter::repeat_n(0.0, known as usize).chain(timesteps).collect();
        let timesteps = Tensor::from_slice(&timesteps).to_device(latents.device()).unsqueeze(0);
        let predicted = denoiser.predict(&latents, timesteps)?;
        let mut from = known;
        for flight in &mut flights.chunks {
            let frames = flight.frames();
            if !flight.is_clean() {
                let own = predicted.narrow(2, from, frames);
                let (place, seed) = ((from - known, frames), flight.seed);
                let noise =
                    |step| self.noise_for(denoiser.pipeline, seed, place, noise_at_step(step));
                flight.latents = flight.solver.step(&own, &flight.latents, &noise);
            }
            from += frames;
        }
        wait_for(denoiser.pipeline.device());
        flights.spent += stopwatch.lap();
        Ok(())
    }
}
