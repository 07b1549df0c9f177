// SPDX-License-Identifier: MPL-2.0
//! The trainer: the world it learns, the optimiser, and the loops that train the structs inference uses.

pub mod optim;
pub mod progress;
pub mod sheet;
pub mod vae;
pub mod world;
