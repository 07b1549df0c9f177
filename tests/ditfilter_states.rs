// SPDX-License-Identifier: MPL-2.0
//! `ditfilter` and what goes wrong or comes between: flushes, errors, refused input, presets, cycles, leaks.

#[path = "support/filter.rs"]
mod filter;
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use filter::{CAPS, EIGHT, FRAME, Rig, buffer, model, picture};
use gst::prelude::*;
use gst_check::Harness;
use support::checks::{kept_inspection, nothing_left_behind};
use support::{TINY, copied_folder, init};
use tempfile::TempDir;

/// A filter between test pads, which are live without a clock; nothing is given up.
struct Bench {
    harness: Harness,
    filter: gst::Element,
    bus: gst::Bus,
    _parent: TempDir,
}

impl Bench {
    fn new(steps: u32, properties: &[(&str, &str)]) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let folder = model(parent.path(), steps);
        let filter = gst::ElementFactory::make("ditfilter").build().unwrap();
        filter.set_property("model-path", folder.to_str().unwrap());
        let common =
            [("device", "cpu"), ("threads", "1"), ("chunk-frames", "8"), ("late-policy", "wait")];
        for (name, value) in common.iter().chain(properties) {
            filter.set_property_from_str(name, value);
        }
        let bus = gst::Bus::new();
        filter.set_bus(Some(&bus));
        let mut harness = Harness::with_element(&filter, Some("sink"), Some("src"));
        harness.set_src_caps_str(CAPS);
        harness.play();
        let bench = Self { harness, filter, bus, _parent: parent };
        bench.wait(gst::MessageType::Progress, |message| match message.view() {
            gst::MessageView::Progress(it) => it.get().0 == gst::ProgressType::Complete,
            _ => false,
        });
        bench
    }

    fn wait(&self, kind: gst::MessageType, wanted: impl Fn(&gst::Message) -> bool) {
        loop {
            let message = self.bus.timed_pop_filtered(support::PATIENCE, &[kind]).unwrap();
            if wanted(&message) {
                return;
            }
        }
    }

    fn push(&mut self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            self.harness.push(buffer(number)).unwrap();
        }
    }

    fn pull(&mut self, count: usize) -> Vec<u64> {
        (0..count).map(|_| self.harness.pull().unwrap().offset()).collect()
    }
}

#[test]
fn a_flush_returns_at_once_while_the_model_works() {
    let _serial = init();
    // A chunk of a thousand steps takes far longer than this test waits for anything.
    let mut bench = Bench::new(1000, &[("strength", "1")]);
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        bench.push(0..6);
        let began = Instant::now();
        assert!(bench.harness.push_event(gst::event::FlushStart::new()));
        assert!(bench.harness.push_event(gst::event::FlushStop::new(true)));
        fastest = fastest.min(began.elapsed());
        let segment = gst::FormattedSegment::<gst::ClockTime>::new();
        assert!(bench.harness.push_event(gst::event::Segment::new(&segment)));
    }
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
    // What was out before a flush is not the flush's matter.
    while bench.harness.try_pull().is_some() {}
    // The model is still there, and only what came afterwards comes out.
    bench.filter.set_property("steps", 1u32);
    bench.push(10..15);
    assert_eq!(bench.pull(5), [10, 11, 12, 13, 14]);
}

#[test]
fn events_cut_a_window_and_keep_their_place() {
    let _serial = init();
    let mut bench = Bench::new(1, &[]);
    bench.push(0..2);
    let gap = gst::event::Gap::builder(gst::ClockTime::from_nseconds(2 * FRAME));
    assert!(bench.harness.push_event(gap.duration(gst::ClockTime::from_nseconds(FRAME)).build()));
    assert_eq!(bench.pull(2), [0, 1]);
    bench.push(3..5);
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_start(gst::ClockTime::from_nseconds(FRAME));
    assert!(bench.harness.push_event(gst::event::Segment::new(&segment)));
    assert_eq!(bench.pull(2), [3, 4]);
    // A jump with a discontinuity is a cut too.
    bench.push(5..7);
    let mut after = buffer(200);
    after.get_mut().unwrap().set_flags(gst::BufferFlags::DISCONT);
    bench.harness.push(after).unwrap();
    assert_eq!(bench.pull(2), [5, 6]);
    bench.push(201..203);
    let mut drain = gst::query::Drain::new();
    assert!(bench.harness.element().unwrap().static_pad("sink").unwrap().query(&mut drain));
    assert_eq!(bench.pull(3), [200, 201, 202]);
    bench.push(203..204);
    assert!(bench.harness.push_event(gst::event::Eos::new()));
    assert_eq!(bench.pull(1), [203]);
}

#[test]
fn latency_is_the_chunk_and_the_time_for_it() {
    let _serial = init();
    let mut bench = Bench::new(1, &[]);
    bench.push(0..1);
    // What was told of the caps may lie before or after the end of loading.
    while bench.bus.pop().is_some() {}
    // Eight frames of 40 ms: seven to wait for, eight to work.
    assert_eq!(bench.harness.query_latency(), Some(gst::ClockTime::from_mseconds(15 * 40)));
    bench.filter.set_property("latency-budget", 100_000_000u64);
    assert_eq!(bench.harness.query_latency(), Some(gst::ClockTime::from_mseconds(7 * 40 + 100)));
    bench.harness.set_upstream_latency(gst::ClockTime::from_mseconds(5));
    assert_eq!(bench.harness.query_latency(), Some(gst::ClockTime::from_mseconds(7 * 40 + 105)));
    let told =
        |bus: &gst::Bus| bus.iter().filter(|it| it.type_() == gst::MessageType::Latency).count();
    // Setting things again tells nothing new.
    bench.filter.set_property("latency-budget", 100_000_000u64);
    bench.harness.set_src_caps_str(CAPS);
    bench.push(1..2);
    assert_eq!(told(&bench.bus), 1);
}

#[test]
fn a_reconfigure_changes_nothing() {
    let _serial = init();
    let mut bench = Bench::new(1, &[]);
    bench.push(0..3);
    assert!(bench.harness.push_upstream_event(gst::event::Reconfigure::new()));
    bench.push(3..5);
    assert_eq!(bench.pull(5), [0, 1, 2, 3, 4]);
}

fn refusal(caps: &str) -> String {
    let parent = tempfile::tempdir().unwrap();
    let folder = model(parent.path(), 1);
    let rig = Rig::new(&folder, EIGHT, caps);
    rig.start();
    rig.push_numbers(0..1);
    rig.outcome().unwrap_err()
}

#[test]
fn interlaced_and_hdr_video_is_refused_with_a_way_out() {
    let _serial = init();
    let text = refusal(&format!("{CAPS},interlace-mode=interleaved"));
    assert!(text.contains("deinterlace"), "{text}");
    let hdr = "video/x-raw,format=I420,width=64,height=32,framerate=25/1,colorimetry=bt2100-pq";
    let text = refusal(hdr);
    assert!(text.contains("dynamic range"), "{text}");
}

#[test]
fn what_cannot_be_loaded_is_one_error() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let missing = Rig::new(&parent.path().join("missing"), EIGHT, CAPS);
    assert!(missing.pipeline.set_state(gst::State::Playing).is_err());
    assert!(missing.outcome().unwrap_err().contains("model_index.json"));
    let folder = copied_folder(parent.path(), TINY);
    std::fs::write(folder.join("tokenizer/tokenizer.json"), "garbage").unwrap();
    let damaged = Rig::new(&folder, EIGHT, CAPS);
    damaged.start();
    let _ = damaged.push(buffer(0));
    assert!(damaged.outcome().unwrap_err().contains("tokenizer"));
}

/// A processing size that no memory has room for, or None on a machine where it has.
fn impossible(folder: &Path) -> Option<u32> {
    let info = gstdit::pipeline::FolderInfo::open(folder).unwrap();
    let precision = gstdit::torch::Precision::F32;
    let checked = info.check_memory(8192, 4096, tch::Device::Cpu, precision);
    checked.is_err().then_some(8192)
}

#[test]
fn an_error_on_the_way_passes_pictures_and_warns_once() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let folder = model(parent.path(), 1);
    let Some(width) = impossible(&folder) else { return };
    let rig = Rig::new(&folder, &format!("{EIGHT} on-error=passthrough"), CAPS);
    rig.start();
    let filter = rig.filter.clone();
    rig.filter.static_pad("sink").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let number = info.buffer().unwrap().offset();
        filter.set_property("processing-width", if (4..20).contains(&number) { width } else { 0 });
        gst::PadProbeReturn::Ok
    });
    rig.push_numbers(0..60);
    rig.end();
    rig.outcome().unwrap();
    let frames = rig.frames();
    let changed = |number: usize| frames[number].data != picture(number as u64);
    assert_eq!(frames.len(), 60);
    // The chunk that had begun is still restyled; the next one fails.
    assert!((0..5).all(changed) && !(5..20).any(changed) && (50..60).all(changed));
    let warnings = rig.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("not enough memory"), "{warnings:?}");
}

#[test]
fn an_error_on_the_way_can_end_the_stream() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let folder = model(parent.path(), 1);
    let Some(width) = impossible(&folder) else { return };
    let properties = format!("{EIGHT} on-error=error processing-width={width}");
    let rig = Rig::new(&folder, &properties, CAPS);
    rig.start();
    let _ = rig.push(buffer(0));
    assert!(rig.outcome().unwrap_err().contains("not enough memory"));
}

#[test]
fn presets_bring_prompt_and_strength() {
    let _serial = init();
    let filter = gst::ElementFactory::make("ditfilter").build().unwrap();
    let presets = filter.dynamic_cast_ref::<gst::Preset>().unwrap();
    let names = presets.preset_names();
    for name in ["1920s", "jungle", "pixel-art", "rainbow", "underwater"] {
        assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
        filter.set_property("prompt", "");
        filter.set_property("strength", 0.0);
        presets.load_preset(name).unwrap();
        let prompt = filter.property::<String>("prompt");
        assert!(prompt.contains("style") && !prompt.contains('"'), "{prompt}");
        assert!((0.3..=0.9).contains(&filter.property::<f64>("strength")));
    }
}

#[test]
fn properties_say_when_they_may_change() {
    let _serial = init();
    let element = gst::ElementFactory::make("ditfilter").build().unwrap();
    for spec in element.list_properties().iter().filter(|it| it.owner_type() == element.type_()) {
        let flags = spec.flags();
        let stated = gst::PARAM_FLAG_MUTABLE_PLAYING | gst::PARAM_FLAG_MUTABLE_READY;
        assert!(
            !flags.contains(glib::ParamFlags::WRITABLE) || flags.intersects(stated),
            "{}",
            spec.name()
        );
    }
    for name in ["strength", "noise-level", "guidance-scale"] {
        let spec = element.find_property(name).unwrap();
        assert!(spec.flags().contains(gst::PARAM_FLAG_CONTROLLABLE), "{name}");
    }
}

#[test]
fn the_kept_inspection_is_up_to_date() {
    let _serial = init();
    kept_inspection("ditfilter");
}

#[test]
fn cycles_leave_nothing_behind() {
    nothing_left_behind("cycles_leave_nothing_behind", cycle);
}

fn cycle() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let folder = model(parent.path(), 1);
    for round in 0..100 {
        let rig = Rig::new(&folder, EIGHT, CAPS);
        rig.start();
        rig.push_numbers(0..10);
        if round % 10 == 0 {
            rig.end();
            rig.outcome().unwrap();
        }
        if round % 3 == 0 {
            rig.pipeline.set_state(gst::State::Ready).unwrap();
            rig.start();
        }
        drop(rig);
    }
}
