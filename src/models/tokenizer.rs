// SPDX-License-Identifier: MPL-2.0
//! From a prompt to token ids: cleaning as the training captions were cleaned, then the folder's `tokenizer.json`
//! as it is.

use std::path::{Path, PathBuf};

use tch::{Device, Tensor};
use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{PostProcessor, Tokenizer};

use super::text_repair::{fix_text, unescape};
use crate::error::{Error, Result};

/// File name of the tokenizer inside its folder.
const TOKENIZER_FILE: &str = "tokenizer.json";
/// The token that fills a prompt up to its full length.
const PAD_TOKEN: &str = "<pad>";

/// The tokenizer of a pipeline folder.
#[derive(Debug)]
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    path: PathBuf,
    pad_id: i64,
}

/// The tokens of one prompt, without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, the end token included.
    pub ids: Vec<i64>,
    /// What to fill up with.
    pub pad_id: i64,
}

impl Tokens {
    /// Number of tokens, the end token included.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token at all; never so for a tokenizer that adds an end token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// `[1, len]`, int64.
    pub fn to_tensor(&self, device: Device) -> Tensor {
        Tensor::from_slice(&self.ids).unsqueeze(0).to_device(device)
    }

    /// The ids filled up to `max_length`, and a mask that is 1 at the tokens and 0 at the filling.
    pub fn padded(&self, max_length: usize) -> (Vec<i64>, Vec<i64>) {
        let fill = |values: &[i64], with: i64| {
            let missing = max_length.saturating_sub(values.len());
            values.iter().copied().chain(std::iter::repeat_n(with, missing)).collect()
        };
        (fill(&self.ids, self.pad_id), fill(&vec![1; self.ids.len()], 0))
    }
}

impl PromptTokenizer {
    /// Reads `tokenizer.json` from the folder `tokenizer` of a pipeline.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is no such file or it is not a tokenizer.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join(TOKENIZER_FILE);
        if !path.is_file() {
            return Err(Error::checkpoint(path, "no such file; is the download complete?"));
        }
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| {
            Error::checkpoint(&path, format!("not a usable tokenizer: {error}"))
        })?;
        // Lengths are the caller's; what the file says about them belongs to training.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| {
            Error::checkpoint(&path, format!("cannot reset truncation: {error}"))
        })?;
        let pad_id = tokenizer.token_to_id(PAD_TOKEN).map_or(0, i64::from);
        Ok(Self { tokenizer, path, pad_id })
    }

    /// Number of ids, added tokens included: embeddings need as many rows or more.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Repairs what the web does to text, decodes HTML, and joins all white space to single spaces.
    pub fn clean(prompt: &str) -> String {
        let text = unescape(&unescape(&fix_text(prompt)));
        // Four separators that Python strips at the ends, though Unicode does not count them as white space.
        let text =
            text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '\u{1C}'..='\u{1F}'));
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The tokens of a prompt, cleaned first; at most `max_length`, the end token included.
    ///
    /// # Errors
    /// A `max_length` with no room for the end token, or a text that the tokenizer refuses.
    pub fn encode(&self, prompt: &str, max_length: usize) -> Result<Tokens> {
        let refused = |error: tokenizers::Error| {
            Error::checkpoint(&self.path, format!("cannot encode the prompt: {error}"))
        };
        let added = self.tokenizer.get_post_processor().map_or(0, |it| it.added_tokens(false));
        let room = max_length.checked_sub(added).filter(|_| max_length > 0).ok_or_else(|| {
            Error::setting("max_sequence_length", max_length, format!("at least {}", added.max(1)))
        })?;
        let mut encoding =
            self.tokenizer.encode_fast(Self::clean(prompt), false).map_err(refused)?;
        encoding.truncate(room, 0, TruncationDirection::Right);
        let encoding = self.tokenizer.post_process(encoding, None, true).map_err(refused)?;
        let ids = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
        Ok(Tokens { ids, pad_id: self.pad_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_without_a_tokenizer_are_refused_by_path() {
        let folder = tempfile::tempdir().unwrap();
        let missing = PromptTokenizer::from_folder(folder.path()).unwrap_err();
        assert!(matches!(&missing, Error::Checkpoint { .. }), "{missing:?}");
        for content in
            [&b"not json"[..], b"{}", b"{\"model\": {\"type\": \"Nothing\"}}", b"\xFF\xFE\x00"]
        {
            std::fs::write(folder.path().join(TOKENIZER_FILE), content).unwrap();
            let error = PromptTokenizer::from_folder(folder.path()).unwrap_err();
            assert!(matches!(&error, Error::Checkpoint { .. }), "{error:?}");
            assert!(error.to_string().contains(TOKENIZER_FILE), "{error}");
        }
    }

    #[test]
    fn padding_fills_up_and_masks() {
        let tokens = Tokens { ids: vec![5, 1], pad_id: 0 };
        assert_eq!(tokens.padded(4), (vec![5, 1, 0, 0], vec![1, 1, 0, 0]));
        assert_eq!(tokens.to_tensor(Device::Cpu).size(), [1, 2]);
    }

    #[test]
    fn separators_are_stripped_at_the_ends() {
        assert_eq!(PromptTokenizer::clean("\u{1C} a\n\n b\u{A0}c \u{1F}"), "a b c");
    }
}
