// SPDX-License-Identifier: MPL-2.0
//! A pipeline whose messages are kept, and what arrives at its sink.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gst::prelude::*;

use super::PATIENCE;

/// A pipeline with all messages that it has posted; stopped when dropped.
pub struct Watched {
    pub pipeline: gst::Pipeline,
    messages: Arc<Mutex<Vec<gst::Message>>>,
}

impl Watched {
    /// A pipeline as in `gst-launch-1.0`.
    pub fn launch(line: &str) -> Self {
        let pipeline = gst::parse::launch(line).unwrap().downcast::<gst::Pipeline>().unwrap();
        let messages = Arc::new(Mutex::new(Vec::new()));
        let kept = messages.clone();
        pipeline.bus().unwrap().set_sync_handler(move |_, message| {
            kept.lock().unwrap().push(message.clone());
            gst::BusSyncReply::Pass
        });
        Self { pipeline, messages }
    }

    /// The element of a name.
    pub fn element(&self, name: &str) -> gst::Element {
        self.pipeline.by_name(name).unwrap()
    }

    pub fn start(&self) {
        self.pipeline.set_state(gst::State::Playing).unwrap();
    }

    pub fn stop(&self) {
        self.pipeline.set_state(gst::State::Null).unwrap();
    }

    /// Waits for the end; the text of the error that came instead.
    pub fn outcome(&self) -> Result<(), String> {
        let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
        let bus = self.pipeline.bus().unwrap();
        let message = bus.timed_pop_filtered(PATIENCE, &kinds).expect("neither end nor error");
        error_text(&message).map_or(Ok(()), Err)
    }

    /// Waits for a message on the bus.
    pub fn wait_message(&self, wanted: impl Fn(&gst::Message) -> bool) -> gst::Message {
        let bus = self.pipeline.bus().unwrap();
        loop {
            let message = bus.timed_pop(PATIENCE).expect("the message did not come");
            if wanted(&message) {
                return message;
            }
        }
    }

    pub fn messages(&self) -> Vec<gst::Message> {
        self.messages.lock().unwrap().clone()
    }

    /// The texts of all errors on the bus.
    pub fn errors(&self) -> Vec<String> {
        self.messages().iter().filter_map(error_text).collect()
    }

    /// Those of one element alone.
    pub fn errors_of(&self, element: &gst::Element) -> Vec<String> {
        let own = |message: &&gst::Message| message.src() == Some(element.upcast_ref());
        self.messages().iter().filter(own).filter_map(error_text).collect()
    }

    pub fn warnings(&self) -> Vec<String> {
        let text = |message: &gst::Message| match message.view() {
            gst::MessageView::Warning(warning) => Some(warning.error().to_string()),
            _ => None,
        };
        self.messages().iter().filter_map(text).collect()
    }

    /// Kinds of the progress messages in order.
    pub fn progress(&self) -> Vec<gst::ProgressType> {
        let kind = |message: &gst::Message| match message.view() {
            gst::MessageView::Progress(progress) => Some(progress.get().0),
            _ => None,
        };
        self.messages().iter().filter_map(kind).collect()
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
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
        self.pipeline.bus().unwrap().unset_sync_handler();
    }
}

fn error_text(message: &gst::Message) -> Option<String> {
    match message.view() {
        gst::MessageView::Error(error) => Some(error.error().to_string()),
        _ => None,
    }
}

/// What the source pad of an element settled on.
pub fn source_caps(element: &gst::Element) -> gst_video::VideoInfo {
    let caps = element.static_pad("src").unwrap().current_caps().unwrap();
    gst_video::VideoInfo::from_caps(&caps).unwrap()
}

/// What arrives at a sink with `signal-handoffs=true`.
pub struct Received<T> {
    kept: Arc<Mutex<Vec<T>>>,
    arrived: Receiver<()>,
}

impl<T: Send + 'static> Received<T> {
    /// Keeps what `read` makes of each buffer.
    pub fn at(sink: &gst::Element, read: fn(&gst::Buffer) -> T) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let (sender, arrived) = std::sync::mpsc::channel();
        let keep = kept.clone();
        sink.connect("handoff", false, move |values| {
            let buffer = values[1].get::<gst::Buffer>().unwrap();
            keep.lock().unwrap().push(read(&buffer));
            let _ = sender.send(());
            None
        });
        Self { kept, arrived }
    }

    /// Waits until `count` more have arrived.
    pub fn wait(&self, count: usize) {
        for _ in 0..count {
            self.arrived.recv_timeout(Duration::from_secs(PATIENCE.seconds())).unwrap();
        }
    }

    /// All so far, which are forgotten here.
    pub fn take(&self) -> Vec<T> {
        while self.arrived.try_recv().is_ok() {}
        std::mem::take(&mut self.kept.lock().unwrap())
    }
}
