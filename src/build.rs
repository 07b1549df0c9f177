// SPDX-License-Identifier: MPL-2.0
//! Build script: version strings for `plugin_define!` and the run-time path of libtorch.

fn main() {
    gst_plugin_version_helper::info();
    // torch-sys finds libtorch but its rpath does not reach the crates that link it.
    println!("cargo::rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
