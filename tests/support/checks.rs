// SPDX-License-Identifier: MPL-2.0
//! What is checked of every element.

use std::path::Path;

use gst::prelude::*;

/// Checks that the inspection that is kept in the tree lists every property of an element.
pub fn kept_inspection(element: &str) {
    let path = format!("docs/inspect/{element}.txt");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = std::fs::read_to_string(path).unwrap();
    let element = gst::ElementFactory::make(element).build().unwrap();
    for spec in element.list_properties() {
        let (name, blurb) = (spec.name(), spec.blurb().unwrap_or_default());
        // A pad may have a property of the same name.
        let listed = text.lines().any(|line| {
            let rest = line.trim_start().strip_prefix(name);
            rest.is_some_and(|rest| rest.trim_start().starts_with(':') && rest.contains(blurb))
        });
        assert!(listed, "{name}: run script/inspect");
    }
}

/// Runs the test of this name anew in a process of its own, where `cycle` is all that it does, and checks that neither
/// models nor, by GStreamer's leak tracer, objects are left.
pub fn nothing_left_behind(test: &str, cycle: impl FnOnce()) {
    const CHILD: &str = "GST_DIT_LEAK_CHILD";
    if std::env::var_os(CHILD).is_some() {
        cycle();
        assert_eq!(gstdit::session::loaded_models(), 0);
        // SAFETY: the last use of GStreamer in this process; it makes the tracer report.
        unsafe { gst::deinit() };
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .env("GST_TRACERS", "leaks(check-refs=true)")
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("object-alive.class"), "the tracer did not run: {text}");
    // The other two lines with the name say what its records look like.
    let leaks: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("object-alive, type-name="))
        .filter(|line| !line.contains("new format string"))
        .collect();
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
}
