// SPDX-License-Identifier: MPL-2.0
//! What the trainer needs and the plugin does not: the world it learns, captions, the judge.

pub mod captions;
pub mod judge;
pub mod world;
