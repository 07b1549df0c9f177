// SPDX-License-Identifier: MPL-2.0
//! Pipelines around `ditmixer` whose inputs are pushed frame by frame.

// Each test file compiles this module anew and uses a part of it.
#![allow(dead_code)]

use std::ops::{Deref, Range};

use gst::prelude::*;

use crate::support::watched::{Received, Watched, source_caps};

/// Size of the frames of [`MixRig::pair`].
pub const SIZE: (usize, usize) = (64, 32);
/// Their rate.
pub const RATE: (u64, u64) = (25, 1);
/// Playing time of each in nanoseconds.
pub const STEP: u64 = 40_000_000;
/// Whatever the mixer likes.
pub const ANY: &str = "video/x-raw";

/// One buffer as it came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    pub pts: u64,
    pub duration: u64,
    pub data: Vec<u8>,
}

/// An `appsrc`.
pub struct Input(pub gst::Element);

impl Input {
    pub fn push(&self, pts: u64, duration: u64, data: Vec<u8>) -> gst::FlowReturn {
        let mut buffer = gst::Buffer::from_slice(data);
        let writable = buffer.get_mut().unwrap();
        writable.set_pts(gst::ClockTime::from_nseconds(pts));
        writable.set_duration(gst::ClockTime::from_nseconds(duration));
        self.0.emit_by_name("push-buffer", &[&buffer])
    }

    /// Frames `range` of a stream of `rate` frames a second, painted by `paint`.
    pub fn push_frames(&self, range: Range<u64>, rate: (u64, u64), paint: impl Fn(u64) -> Vec<u8>) {
        let time = |frame: u64| frame * 1_000_000_000 * rate.1 / rate.0;
        for frame in range {
            let begin = time(frame);
            let flow = self.push(begin, time(frame + 1) - begin, paint(frame));
            assert_eq!(flow, gst::FlowReturn::Ok);
        }
    }

    pub fn caps(&self, caps: &str) {
        self.0.set_property("caps", caps.parse::<gst::Caps>().unwrap());
    }

    pub fn end(&self) {
        let _ = self.0.emit_by_name::<gst::FlowReturn>("end-of-stream", &[]);
    }

    /// The sink pad of the mixer that it feeds.
    pub fn pad(&self) -> gst::Pad {
        self.0.static_pad("src").unwrap().peer().unwrap()
    }
}

/// A pipeline `appsrc... ! ditmixer ! caps ! fakesink` with everything that came out of it.
pub struct MixRig {
    watched: Watched,
    pub mixer: gst::Element,
    pub inputs: Vec<Input>,
    outputs: Received<Output>,
}

impl MixRig {
    /// A mixer with properties as in `gst-launch-1.0`, one input for each caps, and caps of the output.
    pub fn new(properties: &str, inputs: &[&str], caps: &str) -> Self {
        let line = format!(
            "ditmixer name=mixer {properties} ! {caps} ! fakesink name=sink signal-handoffs=true sync=false"
        );
        Self::from_line(&line, inputs)
    }

    /// A mixer with two inputs that are alike.
    pub fn pair(properties: &str) -> Self {
        let caps = rgb(SIZE, RATE);
        Self::new(properties, &[&caps, &caps], ANY)
    }

    pub fn from_line(line: &str, inputs: &[&str]) -> Self {
        let watched = Watched::launch(line);
        let outputs = Received::at(&watched.element("sink"), output);
        let mixer = watched.element("mixer");
        let mut rig = Self { watched, mixer, inputs: Vec::new(), outputs };
        for caps in inputs {
            rig.add(caps);
        }
        rig
    }

    /// Frames of [`a`] to the first input and as many of [`b`] to the second.
    pub fn push(&self, frames: Range<u64>) {
        self.inputs[0].push_frames(frames.clone(), RATE, a);
        self.inputs[1].push_frames(frames, RATE, b);
    }

    /// One more input, which may be added while playing.
    pub fn add(&mut self, caps: &str) {
        let source = gst::ElementFactory::make("appsrc")
            .property_from_str("format", "time")
            .property_from_str("stream-type", "seekable")
            .property("caps", caps.parse::<gst::Caps>().unwrap())
            .property("max-bytes", 0u64)
            .build()
            .unwrap();
        // After a seek the test pushes what it wants to.
        source.connect("seek-data", false, |_| Some(true.to_value()));
        self.pipeline.add(&source).unwrap();
        let pad = self.mixer.request_pad_simple("sink_%u").unwrap();
        source.static_pad("src").unwrap().link(&pad).unwrap();
        source.sync_state_with_parent().unwrap();
        self.inputs.push(Input(source));
    }

    /// Takes an input away while playing.
    pub fn remove(&mut self, index: usize) {
        let input = self.inputs.remove(index);
        let pad = input.pad();
        // The pipeline may still be on its way to playing, and would take its element along.
        input.0.set_locked_state(true);
        input.0.set_state(gst::State::Null).unwrap();
        input.0.static_pad("src").unwrap().unlink(&pad).unwrap();
        self.mixer.release_request_pad(&pad);
        self.pipeline.remove(&input.0).unwrap();
    }

    /// Ends all inputs and waits for the end; all that came out since it was last asked for.
    #[track_caller]
    pub fn finish(&self) -> Vec<Output> {
        self.inputs.iter().for_each(Input::end);
        self.wait_end()
    }

    /// Waits for the end; all that came out since it was last asked for.
    #[track_caller]
    pub fn wait_end(&self) -> Vec<Output> {
        let outcome = self.outcome();
        assert!(outcome.is_ok(), "{:?}", self.errors());
        self.take()
    }

    pub fn wait_frames(&self, count: usize) {
        self.outputs.wait(count);
    }

    pub fn take(&self) -> Vec<Output> {
        self.outputs.take()
    }

    /// What the source pad settled on.
    pub fn caps(&self) -> gst_video::VideoInfo {
        source_caps(&self.mixer)
    }
}

impl Deref for MixRig {
    type Target = Watched;

    fn deref(&self) -> &Watched {
        &self.watched
    }
}

fn output(buffer: &gst::Buffer) -> Output {
    Output {
        pts: buffer.pts().unwrap().nseconds(),
        duration: buffer.duration().unwrap().nseconds(),
        data: buffer.map_readable().unwrap().to_vec(),
    }
}

/// A packed RGB picture: a gradient with a square that moves with `frame`; `kind` tells streams apart.
pub fn picture(kind: u8, frame: u64, (width, height): (usize, usize)) -> Vec<u8> {
    let stride = (width * 3).next_multiple_of(4);
    let mut data = vec![0; stride * height];
    let (left, top) = ((frame as usize * 3) % width, (frame as usize * 2) % height);
    for y in 0..height {
        for x in 0..width {
            let inside =
                (left..left + width / 4).contains(&x) && (top..top + height / 4).contains(&y);
            let pixel = &mut data[y * stride + x * 3..][..3];
            pixel[0] = if inside { 255 - kind } else { kind };
            pixel[1] = (x * 255 / width) as u8;
            pixel[2] = (y * 255 / height) as u8 ^ kind;
        }
    }
    data
}

/// Frames of one stream.
pub fn a(frame: u64) -> Vec<u8> {
    picture(10, frame, SIZE)
}

/// Frames of another.
pub fn b(frame: u64) -> Vec<u8> {
    picture(200, frame, SIZE)
}

/// Checks that frames follow each other exactly at a rate, from 0 on.
#[track_caller]
pub fn on_time(outputs: &[Output], (num, den): (u64, u64)) {
    for (index, output) in outputs.iter().enumerate() {
        let time = |frame: usize| {
            (frame as u128 * 1_000_000_000 * u128::from(den) / u128::from(num)) as u64
        };
        assert_eq!(output.pts, time(index), "frame {index}");
        assert_eq!(output.duration, time(index + 1) - time(index), "frame {index}");
    }
}

/// Caps of [`picture`].
pub fn rgb((width, height): (usize, usize), rate: (u64, u64)) -> String {
    format!("video/x-raw,format=RGB,width={width},height={height},framerate={}/{}", rate.0, rate.1)
}
