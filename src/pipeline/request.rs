// SPDX-License-Identifier: MPL-2.0
//! What a caller asks for, and the same checked and completed from the folder's native values.

use super::folder::FolderInfo;
use super::noise::NoiseKind;
use crate::error::{Error, Result};

/// What stays the same for the whole of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Output size in pixels, any from 16 on; generated at the next larger multiple and cropped.
    pub width: i64,
    pub height: i64,
    /// `None`: the folder's own.
    pub num_inference_steps: Option<u32>,
    pub noise: NoiseKind,
}

/// What may change from chunk to chunk.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Controls {
    pub prompt: String,
    pub negative_prompt: String,
    /// `None`: the folder's own; up to 1 there is no guidance and the negative prompt has no effect.
    pub guidance_scale: Option<f64>,
    pub seed: u64,
}

/// A checked request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub(super) width: i64,
    pub(super) height: i64,
    pub(super) num_inference_steps: u32,
    pub(super) noise: NoiseKind,
}

/// Smallest width and height in pixels.
const SMALLEST: i64 = 16;
/// Largest width and height in pixels: what video caps can say.
const LARGEST: i64 = 1 << 15;
/// Most steps; the schedules have this many distinct timesteps.
const MOST_STEPS: u32 = 1000;

impl Request {
    /// Checks settings and fills in the folder's native values.
    ///
    /// # Errors
    /// [`Error::Setting`] for a size or number of steps out of range.
    pub fn new(settings: &Settings, info: &FolderInfo) -> Result<Self> {
        for (name, value) in [("width", settings.width), ("height", settings.height)] {
            if !(SMALLEST..=LARGEST).contains(&value) {
                return Err(Error::setting(name, value, format!("{SMALLEST} to {LARGEST} pixels")));
            }
        }
        let steps = settings.num_inference_steps.unwrap_or(info.native.num_inference_steps);
        if !(1..=MOST_STEPS).contains(&steps) {
            return Err(Error::setting("steps", steps, format!("1 to {MOST_STEPS}")));
        }
        Ok(Self {
            width: settings.width,
            height: settings.height,
            num_inference_steps: steps,
            noise: settings.noise,
        })
    }

    /// The same with another number of steps, at least 1.
    pub fn with_num_inference_steps(self, steps: u32) -> Self {
        Self { num_inference_steps: steps.clamp(1, MOST_STEPS), ..self }
    }

    /// Output size in pixels.
    pub fn size(&self) -> (i64, i64) {
        (self.width, self.height)
    }

    /// Steps of each window.
    pub fn num_inference_steps(&self) -> u32 {
        self.num_inference_steps
    }
}
