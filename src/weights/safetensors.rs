// SPDX-License-Identifier: MPL-2.0
//! Reading and writing of safetensors files, single or sharded, memory-mapped.
//!
//! Headers are checked by the `safetensors` crate (length, offsets, overlaps, size of the file) before
//! anything is allocated; tensors are views into a private, lazy map of the file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Where one tensor lies.
#[derive(Debug, Clone)]
struct Entry {
    file: usize,
    kind: Kind,
    shape: Vec<i64>,
    /// Byte offset from the start of the file.
    offset: i64,
    bytes: i64,
}

struct Mapped {
    path: PathBuf,
    /// The whole file as bytes `[N]`; views of it keep the map alive.
    bytes: Tensor,
}

/// The tensors of one component folder: names, shapes, and their bytes on disk.
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<Mapped>,
    entries: BTreeMap<String, Entry>,
}

impl Checkpoint {
    /// Opens the weights of a component folder: `<stem>.safetensors`, or the shards that
    /// `<stem>.safetensors.index.json` lists.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the file that is missing, truncated or malformed.
    pub fn open(folder: &Path, stem: &str) -> Result<Self> {
        let single = folder.join(format!("{stem}.safetensors"));
        let index = folder.join(format!("{stem}.safetensors.index.json"));
        let mut checkpoint =
            Self { folder: folder.to_owned(), files: Vec::new(), entries: BTreeMap::new() };
        if index.exists() {
            checkpoint.add_shards(&index)?;
        } else if single.exists() {
            checkpoint.add_file(&single)?;
        } else {
            let what =
                format!("no weights: neither {stem}.safetensors nor its .index.json is there");
            return Err(Error::checkpoint(folder, what));
        }
        Ok(checkpoint)
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is missing, truncated or malformed.
    pub fn open_file(path: &Path) -> Result<Self> {
        let folder = path.to_owned();
        let mut checkpoint = Self { folder, files: Vec::new(), entries: BTreeMap::new() };
        checkpoint.add_file(path)?;
        Ok(checkpoint)
    }

    /// What errors name: the folder, or the file of [`Checkpoint::open_file`].
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Bytes of all tensors on disk.
    pub fn total_bytes(&self) -> u64 {
        self.entries.values().map(|entry| entry.bytes as u64).sum()
    }

    /// A tensor as a view of the map, in its dtype on disk, on the CPU.
    ///
    /// # Errors
    /// [`Error::MissingTensors`] if there is none of that name.
    pub fn raw(&self, name: &str) -> Result<Tensor> {
        let entry = self.entries.get(name).ok_or_else(|| Error::MissingTensors {
            folder: self.folder.clone(),
            names: vec![name.to_owned()],
        })?;
        let bytes = self.files[entry.file].bytes.f_narrow(0, entry.offset, entry.bytes)?;
        let aligned = entry.offset % entry.kind.elt_size_in_bytes() as i64 == 0;
        // A view of another dtype needs an aligned offset; a copy always has one.
        let bytes = if aligned { bytes } else { bytes.f_detach_copy()? };
        Ok(bytes.f_view_dtype(entry.kind)?.f_view(entry.shape.as_slice())?)
    }

    /// A floating-point tensor in the wanted kind on the wanted device, checked to be finite.
    ///
    /// # Errors
    /// As [`Checkpoint::raw`]; [`Error::Checkpoint`] for integers, NaN or infinity.
    pub fn float(&self, name: &str, kind: Kind, device: Device) -> Result<Tensor> {
        let raw = self.raw(name)?;
        let path = || {
            self.entries.get(name).map_or(self.folder.clone(), |e| self.files[e.file].path.clone())
        };
        if !is_float(raw.kind()) {
            let what =
                format!("tensor {name} holds {:?}, expected floating-point weights", raw.kind());
            return Err(Error::checkpoint(path(), what));
        }
        let tensor = raw.f_to_dtype_layout((kind, device), false, false)?;
        // The sum in f32 is finite exactly when no element is NaN or infinite (weights are far from
        // f32's range), and needs no temporary.
        let sum = tensor.f_sum(Kind::Float)?.f_double_value(&[])?;
        if !sum.is_finite() {
            let what = format!(
                "tensor {name} holds NaN or infinite values (damaged file, or too large for {kind:?})"
            );
            return Err(Error::checkpoint(path(), what));
        }
        Ok(tensor)
    }

    fn add_shards(&mut self, index: &Path) -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: HashMap<String, String>,
        }
        let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, e))?;
        let parsed: Index = serde_json::from_str(&text)
            .map_err(|e| Error::checkpoint(index, format!("not a shard index: {e}")))?;
        let mut shards: Vec<&String> = parsed.weight_map.values().collect();
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            if Path::new(shard).components().count() != 1 {
                return Err(Error::checkpoint(
                    index,
                    format!("shard {shard} is not a plain file name"),
                ));
            }
            self.add_file(&self.folder.join(shard))?;
        }
        let mut absent: Vec<String> =
            parsed.weight_map.into_keys().filter(|name| !self.entries.contains_key(name)).collect();
        absent.sort_unstable();
        if absent.is_empty() {
            Ok(())
        } else {
            Err(Error::MissingTensors { folder: self.folder.clone(), names: absent })
        }
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let header = read_header(path, &file)?;
        let size =
            i64::try_from(length).map_err(|_| Error::checkpoint(path, "larger than 2^63 bytes"))?;
        let name = path.to_str().ok_or_else(|| Error::checkpoint(path, "the path is not UTF-8"))?;
        let bytes = Tensor::f_from_file(name, false, Some(size), (Kind::Uint8, Device::Cpu))?;
        let file_index = self.files.len();
        for (name, mut entry) in header {
            entry.file = file_index;
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(Error::checkpoint(path, format!("tensor {name} is in two shards")));
            }
        }
        self.files.push(Mapped { path: path.to_owned(), bytes });
        Ok(())
    }
}

/// Reads and checks a header without reading the tensors.
fn read_header(path: &Path, file: &File) -> Result<Vec<(String, Entry)>> {
    // SAFETY: the map is only read here, as bytes; a file that another process truncates meanwhile is
    // the known limit of mapping weights, and the writer in this crate replaces files by renaming.
    let map = unsafe { memmap2::Mmap::map(file) }.map_err(|e| Error::io(path, e))?;
    let (header_length, metadata) = SafeTensors::read_metadata(&map).map_err(|e| {
        Error::checkpoint(
            path,
            format!("not a valid safetensors file: {e}; download or copy it again"),
        )
    })?;
    let data_start = header_length + 8;
    let mut entries = Vec::new();
    for (name, info) in metadata.tensors() {
        let kind = kind_of(info.dtype).ok_or_else(|| {
            Error::checkpoint(path, format!("tensor {name} has dtype {:?}; F64, F32, F16, BF16 and plain integers are supported", info.dtype))
        })?;
        let (begin, end) = info.data_offsets;
        let entry = Entry {
            file: 0,
            kind,
            shape: info.shape.iter().map(|&d| d as i64).collect(),
            offset: (data_start + begin) as i64,
            bytes: (end - begin) as i64,
        };
        entries.push((name, entry));
    }
    Ok(entries)
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::BOOL => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        _ => return None,
    })
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Bool => Dtype::BOOL,
        Kind::Uint8 => Dtype::U8,
        Kind::Int => Dtype::I32,
        Kind::Int64 => Dtype::I64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        _ => return None,
    })
}

fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double)
}

/// Writes tensors under their names, each in its own kind, replacing `path` in one step.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written, [`Error::Torch`] for kinds without a safetensors dtype.
pub fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, &'a Tensor)>,
) -> Result<()> {
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
        let dtype = dtype_of(tensor.kind()).ok_or_else(|| {
            Error::Torch(format!("{name}: {:?} cannot be written", tensor.kind()))
        })?;
        let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        if !bytes.is_empty() {
            let flat = tensor.f_view(-1)?.f_view_dtype(Kind::Uint8)?;
            flat.f_copy_data_u8(&mut bytes, tensor.numel() * tensor.kind().elt_size_in_bytes())?;
        }
        let shape = tensor.size().iter().map(|&d| d as usize).collect::<Vec<_>>();
        data.push((name, dtype, shape, bytes));
    }
    let views = data
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes);
            view.map(|view| (name.as_str(), view))
                .map_err(|e| Error::checkpoint(path, e.to_string()))
        })
        .collect::<Result<Vec<_>>>()?;
    let partial = path.with_extension("safetensors.partial");
    safetensors::serialize_to_file(views, None, &partial)
        .map_err(|e| Error::checkpoint(&partial, format!("cannot be written: {e}")))?;
    std::fs::rename(&partial, path).map_err(|e| Error::io(path, e))
}
