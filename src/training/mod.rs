// SPDX-License-Identifier: MPL-2.0
//! The trainer: the world it learns, its captions and judge, the optimiser, and the loops that train the structs
//! inference uses.

mod ahead;
mod attribute_head;
pub mod bank;
mod batch;
pub mod captions;
mod clock;
mod crew;
pub mod dit;
mod emphasis;
pub mod eval;
mod exchange;
pub mod finetune;
mod folder;
pub mod generate;
pub mod judge;
mod lengthen;
pub mod optim;
pub mod progress;
mod redraw;
mod sampler;
pub mod sheet;
mod teacher;
mod trainer;
pub mod vae;
pub mod world;
