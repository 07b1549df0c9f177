// SPDX-License-Identifier: MPL-2.0
//! Attention over video tokens: scaled dot products, three-axis rotary positions, and the key-value cache of
//! causal rollouts.
//!
//! Queries, keys and values are `[B, heads, N, head_dim]`; tokens run over frames, then rows, then columns.

use tch::{Device, Kind, Tensor};

/// Scaled dot-product attention, scale `head_dim^-0.5`; `mask` is true (`[N, M]`) where a query may look.
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>) -> Tensor {
    Tensor::scaled_dot_product_attention(query, key, value, mask, 0.0, false, None, false)
}

/// `[B, N, heads * head_dim]` to `[B, heads, N, head_dim]`, a view.
pub fn split_heads(x: &Tensor, heads: i64) -> Tensor {
    let s = x.size();
    x.view([s[0], s[1], heads, s[2] / heads]).transpose(1, 2)
}

/// The inverse of [`split_heads`].
pub fn merge_heads(x: &Tensor) -> Tensor {
    let s = x.size();
    x.transpose(1, 2).reshape([s[0], s[2], s[1] * s[3]])
}

/// Tokens along each axis of a clip, and where on the time axis it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenGrid {
    pub frames: i64,
    pub height: i64,
    pub width: i64,
    /// Position of the first frame; only differences between frames matter to a model.
    pub frame_offset: i64,
}

impl TokenGrid {
    /// Tokens in all.
    pub fn len(&self) -> i64 {
        self.frames * self.height * self.width
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Unit complex numbers `[1, N, 1, head_dim / 2]` that turn adjacent pairs of a head's channels by angles which
/// grow with the position on each axis.
#[derive(Debug)]
pub struct RotaryTables(Tensor);

impl RotaryTables {
    /// Tables for a grid. A head's channels are shared out as `2 * (head_dim / 6)` for height, as many for width and
    /// the rest for time; angles are `position / 10000^(2j/d)`, computed in f64.
    pub fn new(grid: &TokenGrid, head_dim: i64, device: Device) -> Self {
        let frames: Vec<i64> = (grid.frame_offset..grid.frame_offset + grid.frames).collect();
        Self::at(&frames, grid, head_dim, device)
    }

    /// As [`Self::new`], with the position in time of each of the grid's frames given.
    pub fn at(frames: &[i64], grid: &TokenGrid, head_dim: i64, device: Device) -> Self {
        let space = 2 * (head_dim / 6);
        let time = axis_angles(head_dim - 2 * space, frames.iter().copied());
        let rows = axis_angles(space, 0..grid.height);
        let columns = axis_angles(space, 0..grid.width);
        let mut angles = Vec::with_capacity((grid.len() * head_dim / 2) as usize);
        for t in &time {
            for y in &rows {
                for x in &columns {
                    angles.extend(t.iter().chain(y).chain(x));
                }
            }
        }
        let part = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|&angle| f(angle) as f32).collect();
            Tensor::from_slice(&values).view([1, grid.len(), 1, head_dim / 2])
        };
        Self(Tensor::complex(&part(f64::cos), &part(f64::sin)).to_device(device))
    }

    /// Turns `[B, N, heads * head_dim]` and splits it into heads: `[B, heads, N, head_dim]` in the kind of `x`.
    pub fn rotate(&self, x: &Tensor, heads: i64) -> Tensor {
        let s = x.size();
        // Complex products are two kernels less than sums of real ones, forward and backward.
        let pairs = x.to_kind(Kind::Float).view([s[0], s[1], heads, -1, 2]).view_as_complex();
        let turned = (pairs * &self.0).view_as_real().flatten(3, 4); // [B, N, heads, head_dim]
        turned.to_kind(x.kind()).transpose(1, 2)
    }
}

/// For each of these positions the angles of `channels / 2` pairs.
fn axis_angles(channels: i64, positions: impl Iterator<Item = i64>) -> Vec<Vec<f64>> {
    let frequency = |j: i64| 1.0 / 10_000f64.powf(2.0 * j as f64 / channels as f64);
    positions
        .map(|position| (0..channels / 2).map(|j| position as f64 * frequency(j)).collect())
        .collect()
}

/// Keys (already turned) and values of the frames that a causal rollout looks back at, for each layer.
///
/// Keys keep the absolute positions they were made at: attention depends on differences only, so the newest queries
/// are simply turned to their own positions, however long the stream.
#[derive(Debug, Default)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    max_tokens: i64,
}

impl KvCache {
    /// An empty cache that keeps the newest `max_tokens` tokens.
    pub fn new(max_tokens: i64) -> Self {
        Self { layers: Vec::new(), max_tokens }
    }

    /// Tokens held.
    pub fn tokens(&self) -> i64 {
        self.layers.first().map_or(0, |(key, _)| key.size()[2])
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        let bytes = |t: &Tensor| t.numel() as u64 * t.kind().elt_size_in_bytes() as u64;
        self.layers.iter().map(|(key, value)| bytes(key) + bytes(value)).sum()
    }

    /// A copy that shares the tensors, which are never written in place.
    pub fn shallow_clone(&self) -> Self {
        let share = |(k, v): &(Tensor, Tensor)| (k.shallow_clone(), v.shallow_clone());
        Self { layers: self.layers.iter().map(share).collect(), max_tokens: self.max_tokens }
    }

    /// What two batches look back at, as one batch; both hold the same frames.
    pub fn stacked(one: &Self, other: &Self) -> Self {
        let stack = |((a, b), (c, d)): (&(Tensor, Tensor), &(Tensor, Tensor))| {
            (Tensor::cat(&[a, c], 0), Tensor::cat(&[b, d], 0))
        };
        let layers = one.layers.iter().zip(&other.layers).map(stack).collect();
        Self { layers, max_tokens: one.max_tokens }
    }

    /// The cached keys and values of a layer with the new ones behind them.
    fn joined(&self, layer: usize, key: &Tensor, value: &Tensor) -> (Tensor, Tensor) {
        match self.layers.get(layer) {
            None => (key.shallow_clone(), value.shallow_clone()),
            Some((old_key, old_value)) => {
                (Tensor::cat(&[old_key, key], 2), Tensor::cat(&[old_value, value], 2))
            }
        }
    }

    fn keep(&mut self, layer: usize, key: &Tensor, value: &Tensor) {
        let newest = |t: &Tensor| {
            let length = t.size()[2];
            let kept = length.min(self.max_tokens);
            t.narrow(2, length - kept, kept).contiguous()
        };
        let entry = (newest(key), newest(value));
        match self.layers.get_mut(layer) {
            Some(slot) => *slot = entry,
            None => self.layers.push(entry),
        }
    }
}

/// What a forward pass does with a [`KvCache`].
#[derive(Debug, Default)]
pub enum KvAccess<'a> {
    /// There is none.
    #[default]
    None,
    /// Looks back at it and leaves it as it is.
    Read(&'a KvCache),
    /// Looks back at it and adds its own frames.
    Append(&'a mut KvCache),
}

impl KvAccess<'_> {
    /// The keys and values that the queries of `layer` may look at.
    pub fn extend(&mut self, layer: usize, key: Tensor, value: Tensor) -> (Tensor, Tensor) {
        match self {
            Self::None => (key, value),
            Self::Read(cache) => cache.joined(layer, &key, &value),
            Self::Append(cache) => {
                let (key, value) = cache.joined(layer, &key, &value);
                cache.keep(layer, &key, &value);
                (key, value)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_keeps_dot_products_of_equal_distances() {
        let options = (Kind::Float, Device::Cpu);
        let (q, k) = (Tensor::randn([1, 1, 12], options), Tensor::randn([1, 1, 12], options));
        let score = |at: i64, from: i64| {
            let turn = |x: &Tensor, frame_offset: i64| {
                let grid = TokenGrid { frames: 1, height: 1, width: 1, frame_offset };
                RotaryTables::new(&grid, 12, Device::Cpu).rotate(x, 1)
            };
            (turn(&q, at) * turn(&k, from)).sum(Kind::Float).double_value(&[])
        };
        assert!((score(7, 3) - score(1_000_007, 1_000_003)).abs() < 1e-4);
        assert!((score(7, 3) - score(7, 7)).abs() > 1e-3);
    }

    #[test]
    fn a_cache_keeps_the_newest_tokens() {
        let mut cache = KvCache::new(3);
        for step in 0..4 {
            let x = Tensor::full([1, 1, 2, 1], step as f64, (Kind::Float, Device::Cpu));
            let _ = KvAccess::Append(&mut cache).extend(0, x.shallow_clone(), x);
        }
        assert_eq!((cache.tokens(), cache.bytes()), (3, 24));
        let newest: Vec<f32> = cache.layers[0].0.view(-1).try_into().unwrap();
        assert_eq!(newest, [2.0, 3.0, 3.0]);
    }
}
