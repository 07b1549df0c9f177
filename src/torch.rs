// SPDX-License-Identifier: MPL-2.0
//! Everything about libtorch that is not a tensor operation: start-up, devices, precision, threads,
//! memory figures and the one boundary where a torch panic becomes an [`Error`].
//!
//! libtorch is linked without its CUDA half; [`init`] opens `libtorch_cuda.so` at run time where a driver
//! is found, before the first call that would fix the CPU-only hooks for the life of the process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tch::{Device, Kind};

use crate::error::{Error, Result, first_line};

/// The arithmetic a model runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// bf16 on CUDA, f32 on the CPU.
    #[default]
    Auto,
    F32,
    Bf16,
    F16,
}

impl Precision {
    /// The tensor kind that this precision means on a device.
    pub fn kind(self, device: Device) -> Kind {
        match self {
            Self::Auto if matches!(device, Device::Cuda(_)) => Kind::BFloat16,
            Self::Auto | Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
}

/// Bytes of one element of a kind.
pub fn kind_bytes(kind: Kind) -> u64 {
    kind.elt_size_in_bytes() as u64
}

/// The version of libtorch that this is written for.
pub const LIBTORCH: &str = "2.11.0";

/// Whether CUDA could be opened, or why not.
static CUDA: OnceLock<std::result::Result<(), String>> = OnceLock::new();

/// Prepares libtorch once per process; must come before any other use of it.
pub fn init() {
    cuda();
}

fn cuda() -> &'static std::result::Result<(), String> {
    CUDA.get_or_init(|| {
        if !driver_present() {
            return Err("no NVIDIA driver found".into());
        }
        open_cuda()
    })
}

fn driver_present() -> bool {
    Path::new("/proc/driver/nvidia/version").exists() || Path::new("/dev/nvidiactl").exists()
}

/// Opens `libtorch_cuda.so` from beside the `libtorch_cpu.so` in use, from the CUDA folder that
/// `script/bootstrap --cuda` makes beside it, or from the loader's own path.
fn open_cuda() -> std::result::Result<(), String> {
    const LIBRARY: &str = "libtorch_cuda.so";
    let mut candidates = Vec::new();
    if let Some(folder) = loaded_library_folder("libtorch_cpu.so") {
        if let Some(cache) = folder.parent().and_then(Path::parent) {
            let cuda = cache.join(format!("libtorch-{LIBTORCH}-cuda"));
            candidates.push(cuda.join("torch/lib").join(LIBRARY));
            candidates.push(cuda.join("lib").join(LIBRARY));
        }
        candidates.insert(0, folder.join(LIBRARY));
    }
    candidates.retain(|path| path.exists());
    candidates.push(PathBuf::from(LIBRARY));
    let mut reasons = Vec::new();
    for candidate in candidates {
        // SAFETY: the library is libtorch's own second half; its initialisers only register CUDA hooks.
        match unsafe { libloading::os::unix::Library::open(Some(&candidate), libc::RTLD_NOW) } {
            Ok(library) => {
                // Registered hooks point into the library: it must stay for ever.
                std::mem::forget(library);
                return match tch::Cuda::device_count() {
                    0 => Err("the NVIDIA driver offers no usable GPU".into()),
                    _ => Ok(()),
                };
            }
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(format!("libtorch's CUDA half could not be opened ({})", reasons.join("; ")))
}

/// The folder of a shared library that this process has mapped.
fn loaded_library_folder(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with(name))?;
    let path = Path::new(line.split_whitespace().nth(5)?);
    path.parent().map(Path::to_owned)
}

/// Checks how a device is written, without touching libtorch: `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// [`Error::Setting`] for anything else.
pub fn check_device_syntax(text: &str) -> Result<()> {
    let index = text.strip_prefix("cuda:").map(str::parse::<usize>);
    match (text, index) {
        ("auto" | "cpu" | "cuda", _) | (_, Some(Ok(_))) => Ok(()),
        _ => Err(Error::setting("device", format!("\"{text}\""), "auto, cpu, cuda or cuda:N")),
    }
}

/// Turns `auto`, `cpu`, `cuda` or `cuda:N` into a device that exists.
///
/// # Errors
/// [`Error::Setting`] for other text, [`Error::Device`] when that GPU is not there.
pub fn resolve_device(text: &str) -> Result<Device> {
    check_device_syntax(text)?;
    let index = match text {
        "cpu" => return Ok(Device::Cpu),
        "auto" => return Ok(if cuda().is_ok() { Device::Cuda(0) } else { Device::Cpu }),
        "cuda" => 0,
        other => other["cuda:".len()..].parse::<usize>().unwrap_or(0),
    };
    let unavailable = |what: String| Error::Device { device: text.into(), what };
    if let Err(why) = cuda() {
        return Err(unavailable(format!(
            "{why}; use device=cpu, or run script/bootstrap --cuda on a machine with an NVIDIA driver"
        )));
    }
    let count = tch::Cuda::device_count();
    if (index as i64) < count {
        Ok(Device::Cuda(index))
    } else {
        Err(unavailable(format!("this machine has {count} CUDA device(s), numbered from 0")))
    }
}

/// The device as users write it.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".into(),
    }
}

/// Bytes that can still be allocated on a device, if the system says.
pub fn available_memory(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(index) => cuda_free_memory(index),
        _ => cpu_available_memory(),
    }
}

fn cpu_available_memory() -> Option<u64> {
    let host = system_bytes("/proc/meminfo", "MemAvailable:")?;
    Some(cgroup_headroom().map_or(host, |limit| limit.min(host)))
}

/// What a container's memory limit leaves, where there is one (cgroup v2).
fn cgroup_headroom() -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok();
    let limit = read("memory.max")?.trim().parse::<u64>().ok()?;
    let used = read("memory.current")?.trim().parse::<u64>().ok()?;
    Some(limit.saturating_sub(used))
}

fn cuda_free_memory(index: usize) -> Option<u64> {
    type SetDevice = unsafe extern "C" fn(i32) -> i32;
    type MemGetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> i32;
    // SAFETY: libcudart is a dependency of the libtorch in use; the signatures are those of the CUDA
    // runtime API, and the pointers are to live locals.
    unsafe {
        let library = libloading::Library::new("libcudart.so.13").ok()?;
        let set_device = library.get::<SetDevice>(b"cudaSetDevice\0").ok()?;
        let mem_get_info = library.get::<MemGetInfo>(b"cudaMemGetInfo\0").ok()?;
        let (mut free, mut total) = (0usize, 0usize);
        let status = set_device(i32::try_from(index).ok()?);
        (status == 0 && mem_get_info(&mut free, &mut total) == 0).then_some(free as u64)
    }
}

/// Peak resident memory of this process in bytes, if the system says.
pub fn peak_memory() -> Option<u64> {
    system_bytes("/proc/self/status", "VmHWM:")
}

/// What the first line that begins with `key` says in a file of the system as `/proc/meminfo` is one.
pub fn system_value(path: impl AsRef<Path>, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(value.trim_start_matches([' ', '\t', ':']).trim_end().to_owned())
}

/// Such a value in kB, as bytes.
pub fn system_bytes(path: &str, key: &str) -> Option<u64> {
    let value = system_value(path, key)?;
    Some(value.trim_end_matches("kB").trim_end().parse::<u64>().ok()? * 1024)
}

/// The name of the processor, if the system says.
pub fn processor() -> Option<String> {
    system_value("/proc/cpuinfo", "model name")
}

/// How many threads can run at once; 0 if the system does not say.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

/// Gives memory that was freed back to the system, as far as the allocator lets it.
///
/// glibc keeps what a thread frees in that thread's arena, where it stays resident: activations of a chunk and their
/// leavings add up to several times what is in use. Elsewhere this does nothing.
pub fn trim_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called from any thread at any time; live memory is left alone.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The machine in words: processor, cores, and the GPU's name where a device is one.
pub fn machine(device: Device) -> String {
    let name = processor().unwrap_or_else(|| "unknown processor".into());
    let machine = format!("{name}, {} cores", cores());
    match device {
        Device::Cuda(index) => format!("{machine}, {}", gpu_name(index)),
        _ => machine,
    }
}

/// What the driver calls a GPU.
fn gpu_name(index: usize) -> String {
    let folders = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = folders.map(|entry| entry.path()).collect();
    folders.sort_unstable();
    let model = folders.get(index).and_then(|at| system_value(at.join("information"), "Model:"));
    model.unwrap_or_else(|| format!("cuda:{index}"))
}

/// Makes this thread, and the worker threads that libtorch starts from it, treat denormals as zero.
///
/// Fading activations are full of them, and they cost a small VAE half of its speed on x86.
pub fn flush_denormals() {
    #[cfg(target_arch = "x86_64")]
    {
        const FLUSH_TO_ZERO: u32 = 1 << 15;
        const DENORMALS_ARE_ZERO: u32 = 1 << 6;
        let mut mxcsr: u32 = 0;
        // SAFETY: reads and writes this thread's SSE control register through a live local; only the
        // two denormal bits change.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &mut mxcsr, options(nostack));
            mxcsr |= FLUSH_TO_ZERO | DENORMALS_ARE_ZERO;
            std::arch::asm!("ldmxcsr [{}]", in(reg) &mxcsr, options(nostack));
        }
    }
}

/// Sets how many CPU threads libtorch uses for work started from this thread; 0 leaves its default.
pub fn set_threads(threads: u32) {
    if threads > 0 {
        tch::set_num_threads(threads as i32);
    }
}

/// Runs one unit of work without gradients and turns a panic of libtorch into an [`Error`].
///
/// # Errors
/// What `work` returns, or [`Error::Torch`] with the first line of libtorch's own message.
pub fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let _no_grad = tch::no_grad_guard();
    quiet_panics();
    // Guards nest: a session guards what the pipeline guards again.
    let outer = IN_GUARD.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    IN_GUARD.set(outer);
    outcome.unwrap_or_else(|payload| {
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("panic without a message");
        Err(Error::Torch(torch_message(message)))
    })
}

thread_local! {
    static IN_GUARD: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Keeps panics that [`guarded`] is about to report from also being printed.
fn quiet_panics() {
    static HOOK: OnceLock<()> = OnceLock::new();
    HOOK.get_or_init(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IN_GUARD.with(std::cell::Cell::get) {
                previous(info);
            }
        }));
    });
}

/// tch panics as `called ... on an Err value: Torch("message\n...")`; keeps the message.
fn torch_message(panic: &str) -> String {
    let inner = panic.split_once("Torch(\"").map_or(panic, |(_, rest)| rest);
    first_line(&inner.replace("\\n", "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    #[test]
    fn a_torch_panic_becomes_an_error() {
        let kind = (Kind::Float, Device::Cpu);
        let error =
            guarded(|| Ok(Tensor::zeros([2], kind) + Tensor::zeros([3], kind))).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("size of tensor"), "{text}");
        assert!(!text.contains("frame #"), "{text}");
    }

    #[test]
    fn device_strings() {
        assert_eq!(resolve_device("cpu").unwrap(), Device::Cpu);
        assert!(check_device_syntax("cuda:3").is_ok());
        for wrong in ["gpu", "cuda:", "cuda:x", "CPU", ""] {
            assert!(check_device_syntax(wrong).unwrap_err().to_string().contains("cuda:N"));
        }
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn trimming_gives_freed_memory_back() {
        let resident = || system_bytes("/proc/self/status", "VmRSS:").unwrap();
        // Small enough for the heap; what lies above keeps the heap from shrinking by itself.
        let mut tensors: Vec<Tensor> =
            (0..2000).map(|_| Tensor::ones([1 << 14], (Kind::Float, Device::Cpu))).collect();
        tensors.drain(..1999);
        let before = resident();
        trim_memory();
        let after = resident();
        assert!(after + (64 << 20) < before, "{} to {} MiB", before >> 20, after >> 20);
        drop(tensors);
    }

    #[test]
    fn memory_is_known() {
        assert!(available_memory(Device::Cpu).unwrap() > 1 << 20);
        assert!(peak_memory().unwrap() > 1 << 20);
    }
}
