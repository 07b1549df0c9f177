#[cfg(feature = "training")]
pub mod training;
