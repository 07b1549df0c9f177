// SPDX-License-Identifier: MPL-2.0
//! `ditsrc` alone between test pads: what it pushes and in which order, flushing, the clock, queries.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use gst::prelude::*;
use gst_check::Harness;
use support::{FIRST_CHUNK, LATER_CHUNK, Native, TINY, copied_folder, folder_with, init};
use tempfile::TempDir;

const CAPS: &str = "video/x-raw,format=NV12,width=48,height=32";

/// A source with a model of its own between test pads.
struct Bench {
    harness: Harness,
    source: gst::Element,
    bus: gst::Bus,
    _parent: TempDir,
}

impl Bench {
    fn new(native: Native, properties: &[(&str, &str)]) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let folder = folder_with(parent.path(), "ti2v_public", native);
        Self::with_folder(parent, &folder, properties)
    }

    fn with_folder(parent: TempDir, folder: &Path, properties: &[(&str, &str)]) -> Self {
        let source = gst::ElementFactory::make("ditsrc").build().unwrap();
        source.set_property("model-path", folder.to_str().unwrap());
        source.set_property("device", "cpu");
        for (name, value) in properties {
            source.set_property_from_str(name, value);
        }
        let bus = gst::Bus::new();
        source.set_bus(Some(&bus));
        let harness = Harness::with_element(&source, None, Some("src"));
        Self { harness, source, bus, _parent: parent }
    }

    /// Waits until the model is loaded.
    fn loaded(&self) {
        let kinds = [gst::MessageType::Progress, gst::MessageType::Error];
        loop {
            let message = self.bus.timed_pop_filtered(support::PATIENCE, &kinds).unwrap();
            match message.view() {
                gst::MessageView::Progress(it) if it.get().0 == gst::ProgressType::Complete => {
                    return;
                }
                gst::MessageView::Error(error) => panic!("{}", error.error()),
                _ => (),
            }
        }
    }

    /// Waits until the stream has ended; the texts of the errors on the way.
    fn ended(&mut self) -> Vec<String> {
        while self.harness.pull_event().unwrap().type_() != gst::EventType::Eos {}
        let errors = std::iter::from_fn(|| self.bus.pop_filtered(&[gst::MessageType::Error]));
        let text = |message: gst::Message| match message.view() {
            gst::MessageView::Error(error) => error.error().to_string(),
            other => panic!("{other:?}"),
        };
        errors.map(text).collect()
    }

    fn pull(&mut self) -> gst::Buffer {
        self.harness.pull().unwrap()
    }

    /// Events that have arrived since the last call.
    fn events(&mut self) -> Vec<gst::Event> {
        std::iter::from_fn(|| self.harness.try_pull_event()).collect()
    }

    fn seek(&mut self, from: gst::ClockTime) -> bool {
        let set = gst::SeekType::Set;
        let none = gst::SeekType::None;
        let seek = gst::event::Seek::new(
            1.0,
            gst::SeekFlags::FLUSH,
            set,
            from,
            none,
            gst::ClockTime::NONE,
        );
        self.harness.push_upstream_event(seek)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.source.set_state(gst::State::Null);
        self.source.set_bus(None);
    }
}

fn kinds(events: &[gst::Event]) -> Vec<gst::EventType> {
    events.iter().map(|event| event.type_()).collect()
}

#[test]
fn events_come_in_order_and_the_end_after_the_last_frame() {
    let _serial = init();
    let mut bench = Bench::new(TINY, &[("num-buffers", "3")]);
    bench.harness.set_sink_caps_str(&format!("{CAPS},framerate=24000/1001"));
    bench.harness.play();
    let mut end = gst::ClockTime::ZERO;
    for number in 0..3 {
        let buffer = bench.pull();
        assert_eq!((buffer.pts(), buffer.dts()), (Some(end), None));
        assert_eq!((buffer.offset(), buffer.offset_end()), (number, number + 1));
        assert_eq!(buffer.size(), 48 * 32 * 3 / 2);
        assert_eq!(buffer.flags().contains(gst::BufferFlags::DISCONT), number == 0);
        end += buffer.duration().unwrap();
    }
    assert_eq!(end.nseconds(), 3 * 1_001_000_000_000 / 24_000);
    assert!(bench.harness.pull_until_eos().unwrap().is_none());
    let events: Vec<_> = (0..5).map(|_| bench.harness.pull_event().unwrap()).collect();
    use gst::EventType::{Caps, Eos, Segment, StreamStart, Tag};
    assert_eq!(kinds(&events), [StreamStart, Caps, Segment, Tag, Eos]);
    let gst::EventView::Segment(segment) = events[2].view() else { panic!("{:?}", events[2]) };
    assert_eq!(segment.segment().format(), gst::Format::Time);
}

#[test]
fn a_new_rate_goes_on_from_the_last_frame() {
    let _serial = init();
    let mut bench = Bench::new(TINY, &[("num-buffers", "24")]);
    bench.harness.set_sink_caps_str(&format!("{CAPS},framerate=16/1"));
    bench.harness.set_blocking_push_mode();
    bench.harness.play();
    let mut end = gst::ClockTime::ZERO;
    let mut durations = Vec::new();
    for number in 0..24 {
        if number == 6 {
            bench.harness.set_sink_caps_str(&format!("{CAPS},framerate=32/1"));
        }
        let buffer = bench.pull();
        assert_eq!((buffer.pts(), buffer.offset()), (Some(end), number));
        durations.push(buffer.duration().unwrap().nseconds());
        end += buffer.duration().unwrap();
    }
    let changed = durations.iter().position(|&it| it == 31_250_000).unwrap();
    assert!((6..12).contains(&changed), "{durations:?}");
    assert!(durations[..changed].iter().all(|&it| it == 62_500_000), "{durations:?}");
    assert!(durations[changed..].iter().all(|&it| it == 31_250_000), "{durations:?}");
    let caps = kinds(&bench.events()).iter().filter(|it| **it == gst::EventType::Caps).count();
    assert_eq!(caps, 2);
}

#[test]
fn a_flush_ends_denoising_and_starts_over() {
    let _serial = init();
    // So many steps at such a size would take minutes.
    let native = Native { width: 320, height: 320, steps: 1000, ..TINY };
    let mut bench = Bench::new(native, &[]);
    bench.harness.play();
    bench.loaded();
    for _ in 0..3 {
        let begun = Instant::now();
        assert!(bench.seek(gst::ClockTime::ZERO));
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    // With fewer steps it comes to an end, which the change alone would not bring about.
    bench.source.set_property("steps", 1u32);
    assert!(bench.seek(gst::ClockTime::ZERO));
    let buffer = bench.pull();
    assert_eq!(buffer.pts(), Some(gst::ClockTime::ZERO));
    assert!(buffer.flags().contains(gst::BufferFlags::DISCONT));
    let events = kinds(&bench.events());
    let count = |wanted| events.iter().filter(|it| **it == wanted).count();
    assert_eq!((count(gst::EventType::FlushStart), count(gst::EventType::FlushStop)), (4, 4));
}

#[test]
fn the_same_frames_come_after_a_flush() {
    let _serial = init();
    let mut bench = Bench::new(TINY, &[]);
    bench.harness.set_sink_caps_str(CAPS);
    bench.harness.play();
    let bytes = |buffer: &gst::Buffer| buffer.map_readable().unwrap().to_vec();
    let first: Vec<_> = (0..FIRST_CHUNK + 2).map(|_| bytes(&bench.pull())).collect();
    assert!(bench.seek(gst::ClockTime::ZERO));
    // What was queued before the flush is still in the harness.
    let mut buffer = bench.pull();
    while !buffer.flags().contains(gst::BufferFlags::DISCONT) {
        buffer = bench.pull();
    }
    for expected in first {
        assert_eq!(bytes(&buffer), expected);
        buffer = bench.pull();
    }
}

#[test]
fn a_refused_seek_leaves_the_stream_as_it_was() {
    let _serial = init();
    let flush = gst::SeekFlags::FLUSH;
    let (set, end, start) = (gst::SeekType::Set, gst::SeekType::End, gst::ClockTime::ZERO);
    let stop = gst::ClockTime::from_seconds(1);
    let frames = gst::format::Default::from_u64;
    let refused = [
        gst::event::Seek::new(-1.0, flush, set, start, set, stop),
        gst::event::Seek::new(-1.0, gst::SeekFlags::empty(), set, start, set, stop),
        gst::event::Seek::new(1.0, flush, end, frames(0), end, frames(4)),
    ];
    let mut bench = Bench::new(TINY, &[("num-buffers", "12")]);
    // Kept for the start, it would fail there.
    assert!(refused.iter().all(|seek| !bench.source.send_event(seek.clone())));
    bench.harness.set_sink_caps_str(&format!("{CAPS},framerate=16/1"));
    bench.harness.set_blocking_push_mode();
    bench.harness.play();
    let mut number = 0;
    for seek in refused {
        // More than are on their way, so that some are made after the refusal.
        for _ in 0..3 {
            let buffer = bench.pull();
            assert_eq!(
                (buffer.offset(), buffer.pts().unwrap().nseconds()),
                (number, number * 62_500_000)
            );
            assert_eq!(buffer.flags().contains(gst::BufferFlags::DISCONT), number == 0);
            number += 1;
        }
        assert!(!bench.harness.push_upstream_event(seek.clone()), "on the pad: {seek:?}");
        assert!(!bench.source.send_event(seek.clone()), "on the element: {seek:?}");
    }
    for number in number..12 {
        assert_eq!(bench.pull().offset(), number);
    }
    use gst::EventType::{Caps, Eos, Segment, StreamStart, Tag};
    let mut events = Vec::new();
    while events.last() != Some(&Eos) {
        events.push(bench.harness.pull_event().unwrap().type_());
    }
    events.retain(|kind| *kind != Tag);
    assert_eq!(events, [StreamStart, Caps, Segment, Eos]);
}

#[test]
fn a_live_frame_waits_for_its_time() {
    let _serial = init();
    let mut bench = Bench::new(TINY, &[("is-live", "true")]);
    bench.harness.use_testclock();
    bench.harness.set_sink_caps_str(&format!("{CAPS},framerate=16/1"));
    let frame = gst::ClockTime::from_nseconds(62_500_000);
    bench.harness.play();
    let clock = bench.harness.testclock().unwrap();
    // Loading takes its time, on which the clock stands still. Then the whole first chunk is there, and nothing of
    // it comes before the clock says so.
    for number in 0..FIRST_CHUNK as u64 {
        bench.harness.wait_for_clock_id_waits(1, 60).unwrap();
        assert_eq!(bench.harness.buffers_in_queue(), 0);
        assert_eq!(clock.next_entry_time(), Some(frame * number));
        bench.harness.crank_single_clock_wait().unwrap();
        assert_eq!(bench.pull().pts(), Some(frame * number));
        assert_eq!(bench.harness.query_latency(), Some(frame));
    }
}

#[test]
fn a_seek_after_an_error_says_it_again() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let folder = copied_folder(parent.path(), TINY);
    let weights = "vae/diffusion_pytorch_model.safetensors";
    std::fs::write(folder.join(weights), "short").unwrap();
    let mut bench = Bench::with_folder(parent, &folder, &[]);
    bench.harness.play();
    let first = bench.ended();
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(first[0].contains(weights), "{first:?}");
    bench.events();
    assert!(bench.seek(gst::ClockTime::ZERO));
    assert_eq!(bench.ended(), first);
}

#[test]
fn a_seek_after_a_mended_error_plays_on() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let folder = copied_folder(parent.path(), TINY);
    // Such a schedule cannot be laid out in a single step.
    let scheduler = serde_json::json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 0.02
    });
    let path = folder.join("scheduler/scheduler_config.json");
    std::fs::write(path, scheduler.to_string()).unwrap();
    let mut bench = Bench::with_folder(parent, &folder, &[("steps", "1")]);
    bench.harness.set_sink_caps_str(CAPS);
    bench.harness.play();
    let errors = bench.ended();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("with 1 steps") && errors[0].contains("use more"), "{errors:?}");
    bench.source.set_property("steps", 2u32);
    assert!(bench.seek(gst::ClockTime::ZERO));
    for number in 0..(FIRST_CHUNK + LATER_CHUNK) as u64 {
        assert_eq!(bench.pull().offset(), number);
    }
}
