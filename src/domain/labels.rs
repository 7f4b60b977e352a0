//! Labels: which workers a flow may run on.
//!
//! A worker has labels, a flow requires some. A worker that lacks one of them claims nothing of the flow; whose lease is
//! over, whose time is up and who is cancelled it sees to all the same, since that takes nothing of what the label is about.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A word of 1 to 63 letters, digits, `.`, `_`, `-` and `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(String);

/// Why a text is no label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a label is 1 to 63 letters, digits, '.', '_', '-' or '/'")]
pub struct InvalidLabel;

impl FromStr for Label {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
        // As long as a label of DNS or Kubernetes.
        let fits = (1..=63).contains(&text.len()) && text.bytes().all(plain);
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidLabel) }
    }
}

impl Label {
    /// The word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Some labels, each once; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(BTreeSet<Label>);

impl Labels {
    /// Takes one more, and says whether it is new.
    pub fn insert(&mut self, label: Label) -> bool {
        self.0.insert(label)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order of the alphabet.
    pub fn iter(&self) -> impl Iterator<Item = &Label> {
        self.0.iter()
    }

    /// Those of `required` that are not among these.
    #[must_use]
    pub fn lacks(&self, required: &Self) -> Self {
        required.0.difference(&self.0).cloned().collect()
    }

    /// Whether all of `required` are among these.
    #[must_use]
    pub fn satisfy(&self, required: &Self) -> bool {
        required.0.is_subset(&self.0)
    }

    /// The words, for those who write them down.
    #[must_use]
    pub fn to_words(&self) -> Vec<String> {
        self.0.iter().map(|label| label.0.clone()).collect()
    }
}

impl FromIterator<Label> for Labels {
    fn from_iter<I: IntoIterator<Item = Label>>(labels: I) -> Self {
        Self(labels.into_iter().collect())
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_words().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(words: &[&str]) -> Labels {
        words.iter().map(|word| word.parse::<Label>().unwrap()).collect()
    }

    #[test]
    fn a_label_is_a_plain_word() {
        for word in ["gpu", "a100", "nvidia.com/gpu", "zone-1", "x_y", &"a".repeat(63)] {
            assert_eq!(word.parse::<Label>().unwrap().as_str(), word);
        }
        for word in ["", " ", "gpu ", "a,b", "g\u{fc}", "a\"b", "a\nb", &"a".repeat(64)] {
            assert_eq!(word.parse::<Label>(), Err(InvalidLabel), "{word:?}");
        }
    }

    #[test]
    fn a_worker_needs_every_label_that_is_required() {
        let worker = labels(&["gpu", "ssd"]);
        assert!(worker.satisfy(&labels(&[])) && worker.satisfy(&labels(&["ssd"])));
        assert!(!worker.satisfy(&labels(&["gpu", "a100"])));
        assert_eq!(worker.lacks(&labels(&["ssd", "tape", "a100"])), labels(&["a100", "tape"]));
        assert!(labels(&[]).satisfy(&labels(&[])) && !labels(&[]).satisfy(&worker));
        assert_eq!(worker.to_string(), "gpu, ssd");
    }
}
