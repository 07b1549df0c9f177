// SPDX-License-Identifier: MPL-2.0
//! Pipelines around `ditmixer` whose inputs are pushed frame by frame.

// Each test file compiles this module anew and uses a part of it.
#![allow(dead_code)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use gst::prelude::*;

use crate::support::PATIENCE;

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
    pub fn push_frames(
        &self,
        range: std::ops::Range<u64>,
        rate: (u64, u64),
        paint: impl Fn(u64) -> Vec<u8>,
    ) {
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
    pub pipeline: gst::Pipeline,
    pub mixer: gst::Element,
    pub inputs: Vec<Input>,
    outputs: Arc<Mutex<Vec<Output>>>,
    messages: Arc<Mutex<Vec<gst::Message>>>,
    arrived: std::sync::mpsc::Receiver<()>,
}

impl MixRig {
    /// A mixer with properties as in `gst-launch-1.0`, one input for each caps, and caps of the output.
    pub fn new(properties: &str, inputs: &[&str], caps: &str) -> Self {
        let line = format!(
            "ditmixer name=mixer {properties} ! {caps} ! fakesink name=sink signal-handoffs=true sync=false"
        );
        Self::from_line(&line, inputs)
    }

    pub fn from_line(line: &str, inputs: &[&str]) -> Self {
        let pipeline = gst::parse::launch(line).unwrap().downcast::<gst::Pipeline>().unwrap();
        let outputs = Arc::new(Mutex::new(Vec::new()));
        let messages = Arc::new(Mutex::new(Vec::new()));
        let (sender, arrived) = std::sync::mpsc::channel();
        let kept = outputs.clone();
        pipeline.by_name("sink").unwrap().connect("handoff", false, move |values| {
            let buffer = values[1].get::<gst::Buffer>().unwrap();
            kept.lock().unwrap().push(output(&buffer));
            let _ = sender.send(());
            None
        });
        let kept = messages.clone();
        pipeline.bus().unwrap().set_sync_handler(move |_, message| {
            kept.lock().unwrap().push(message.clone());
            gst::BusSyncReply::Pass
        });
        let mixer = pipeline.by_name("mixer").unwrap();
        let mut rig = Self { pipeline, mixer, inputs: Vec::new(), outputs, messages, arrived };
        for caps in inputs {
            rig.add(caps);
        }
        rig
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
        input.0.set_state(gst::State::Null).unwrap();
        input.0.static_pad("src").unwrap().unlink(&pad).unwrap();
        self.mixer.release_request_pad(&pad);
        self.pipeline.remove(&input.0).unwrap();
    }

    pub fn start(&self) {
        self.pipeline.set_state(gst::State::Playing).unwrap();
    }

    /// Ends all inputs and waits for the end; false when an error ended it.
    pub fn finish(&self) -> bool {
        self.inputs.iter().for_each(Input::end);
        self.wait_end()
    }

    pub fn wait_end(&self) -> bool {
        let bus = self.pipeline.bus().unwrap();
        let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
        let message = bus.timed_pop_filtered(PATIENCE, &kinds).expect("neither end nor error");
        message.type_() == gst::MessageType::Eos
    }

    pub fn wait_frames(&self, count: usize) {
        for _ in 0..count {
            self.arrived.recv_timeout(Duration::from_secs(PATIENCE.seconds())).unwrap();
        }
    }

    pub fn take(&self) -> Vec<Output> {
        while self.arrived.try_recv().is_ok() {}
        std::mem::take(&mut self.outputs.lock().unwrap())
    }

    pub fn messages(&self) -> Vec<gst::Message> {
        self.messages.lock().unwrap().clone()
    }

    pub fn errors(&self) -> Vec<String> {
        let text = |message: &gst::Message| match message.view() {
            gst::MessageView::Error(error) => Some(error.error().to_string()),
            _ => None,
        };
        self.messages().iter().filter_map(text).collect()
    }

    /// Those of the mixer alone: sources complain too when what they push is refused.
    pub fn own_errors(&self) -> Vec<String> {
        let own = |message: &&gst::Message| message.src() == Some(self.mixer.upcast_ref());
        let text = |message: &gst::Message| match message.view() {
            gst::MessageView::Error(error) => Some(error.error().to_string()),
            _ => None,
        };
        self.messages().iter().filter(own).filter_map(text).collect()
    }

    /// Element messages with a name.
    pub fn structures(&self, name: &str) -> Vec<gst::Structure> {
        let found = |message: &gst::Message| {
            let structure = message.structure()?;
            (message.type_() == gst::MessageType::Element && structure.name() == name)
                .then(|| structure.to_owned())
        };
        self.messages().iter().filter_map(found).collect()
    }

    /// What the source pad settled on.
    pub fn caps(&self) -> gst_video::VideoInfo {
        let caps = self.mixer.static_pad("src").unwrap().current_caps().unwrap();
        gst_video::VideoInfo::from_caps(&caps).unwrap()
    }
}

impl Drop for MixRig {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
        self.pipeline.bus().unwrap().unset_sync_handler();
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

/// Caps of [`picture`].
pub fn rgb((width, height): (usize, usize), rate: (u64, u64)) -> String {
    format!("video/x-raw,format=RGB,width={width},height={height},framerate={}/{}", rate.0, rate.1)
}
