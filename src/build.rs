// SPDX-License-Identifier: MPL-2.0
//! Build script: version strings for `plugin_define!` and the run-time path of libtorch.

fn main() {
    gst_plugin_version_helper::info();
    // Naming one reason to run again makes cargo forget its own; the commit would go stale.
    for log in [".git/logs/HEAD", "src"] {
        if std::path::Path::new(log).exists() {
            println!("cargo::rerun-if-changed={log}");
        }
    }
    // torch-sys finds libtorch but its rpath does not reach the crates that link it.
    println!("cargo::rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
