// SPDX-License-Identifier: MPL-2.0
//! Size, shape and rate of the output, as those of a compositor: the largest and fastest of the inputs.

use gst_video::prelude::*;

use super::imp::DitMixer;
use crate::frames;

/// Least and greatest width and height of the output in pixels.
const SIZES: (i32, i32) = (16, 8192);
/// For inputs of variable rate.
const RATE: (i32, i32) = (25, 1);
/// For pads without caps.
const SIZE: (i32, i32) = (320, 240);

/// Caps that the element makes.
pub(super) fn source_caps() -> gst::Caps {
    let mut caps = frames::output_caps(SIZES.0, SIZES.1);
    let slowest = gst::Fraction::new(1, i32::MAX);
    let rates = gst::FractionRange::new(slowest, gst::Fraction::new(i32::MAX, 1));
    caps.make_mut().set("framerate", rates);
    caps
}

/// Caps that the element takes.
pub(super) fn sink_caps() -> gst::Caps {
    gst_video::VideoCapsBuilder::new()
        .field("interlace-mode", gst_video::VideoInterlaceMode::Progressive.to_str())
        .build()
}

impl DitMixer {
    /// Settles the size, the rate and square pixels where downstream leaves the choice.
    pub(super) fn fixated(&self, mut caps: gst::Caps) -> gst::Caps {
        caps.truncate();
        let inputs: Vec<gst_video::VideoInfo> =
            self.pads().iter().filter_map(VideoAggregatorPadExtManual::video_info).collect();
        let (width, height) = largest(&inputs).unwrap_or(SIZE);
        let rate = fastest(&inputs);
        if let Some(structure) = caps.make_mut().structure_mut(0) {
            structure.fixate_field_nearest_int("width", width);
            structure.fixate_field_nearest_int("height", height);
            structure.fixate_field_nearest_fraction("framerate", rate);
            let square = gst::Fraction::new(1, 1);
            if structure.has_field("pixel-aspect-ratio") {
                structure.fixate_field_nearest_fraction("pixel-aspect-ratio", square);
            } else {
                structure.set("pixel-aspect-ratio", square);
            }
        }
        caps.fixate();
        caps
    }
}

/// Largest width and height in square pixels.
fn largest(inputs: &[gst_video::VideoInfo]) -> Option<(i32, i32)> {
    let width = inputs.iter().map(frames::square_width).max()?;
    let height = inputs.iter().map(|info| i64::from(info.height())).max()?;
    Some((clamped(width), clamped(height)))
}

fn clamped(side: i64) -> i32 {
    side.clamp(i64::from(SIZES.0), i64::from(SIZES.1)) as i32
}

fn fastest(inputs: &[gst_video::VideoInfo]) -> gst::Fraction {
    let fixed = inputs.iter().map(gst_video::VideoInfo::fps).filter(|fps| fps.numer() > 0);
    fixed
        .max_by(|one, other| one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal))
        .unwrap_or_else(|| gst::Fraction::new(RATE.0, RATE.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_is_as_large_and_fast_as_the_inputs() {
        gst::init().unwrap();
        let info = |width, height, fps, par: (i32, i32)| {
            gst_video::VideoInfo::builder(gst_video::VideoFormat::Rgb, width, height)
                .fps(gst::Fraction::new(fps, 1))
                .par(gst::Fraction::new(par.0, par.1))
                .build()
                .unwrap()
        };
        let inputs =
            [info(320, 180, 25, (1, 1)), info(180, 320, 30, (2, 1)), info(16, 16, 0, (1, 1))];
        assert_eq!(largest(&inputs), Some((360, 320)));
        assert_eq!(fastest(&inputs), gst::Fraction::new(30, 1));
        assert_eq!(fastest(&inputs[2..]), gst::Fraction::new(25, 1));
        assert_eq!(largest(&[]), None);
    }
}
