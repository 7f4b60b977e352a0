//! Slots: the devices of a machine, of which each run of a flow holds one.
//!
//! Slots of one name are one pool for all flows of a worker: a device is exclusive, whichever flow's command has it.

use std::fmt;

/// One device, as a command sees it: a variable of its environment and the variable's value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The variable, such as `CUDA_VISIBLE_DEVICES`.
    pub name: String,
    /// The value, such as `1`.
    pub value: String,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

/// The devices that a flow's runs may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    name: String,
    values: Vec<String>,
}

/// Why this can't be a flow's slots.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSlots {
    /// The name.
    #[error("{0:?} is no name of a variable: a letter or '_', then letters, digits and '_', 64 at most")]
    Name(String),
    /// Nothing to hold.
    #[error("there is no value, so nothing could ever run")]
    Empty,
    /// A value, by its place.
    #[error("{1:?} is no value of a slot: 1 to 60 letters, digits and '.', '_', ':', ',', '/', '=', '+', '@', '-'")]
    Value(usize, String),
    /// A value that is there before, by its place.
    #[error("{1:?} stands there twice, and two runs would hold one device")]
    Twice(usize, String),
}

impl Slots {
    /// Of this variable, one for each of these values, which are given out in this order.
    ///
    /// # Errors
    /// Where the name or a value can't be one.
    pub fn new(name: &str, values: &[&str]) -> Result<Self, InvalidSlots> {
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !starts_well || !plain || name.len() > 64 {
            return Err(InvalidSlots::Name(name.to_owned()));
        }
        if values.is_empty() {
            return Err(InvalidSlots::Empty);
        }
        for (place, value) in values.iter().enumerate() {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:,/=+@-".contains(&b);
            // Its file is named after it, which may have 255 bytes.
            if !(1..=60).contains(&value.len()) || !value.bytes().all(plain) {
                return Err(InvalidSlots::Value(place, (*value).to_owned()));
            }
            if values.iter().take(place).any(|other| other == value) {
                return Err(InvalidSlots::Twice(place, (*value).to_owned()));
            }
        }
        Ok(Self { name: name.to_owned(), values: values.iter().map(|value| (*value).to_owned()).collect() })
    }

    /// The variable.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Each of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.values.iter().map(|value| Slot { name: self.name.clone(), value: value.clone() })
    }
}

impl fmt::Display for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.name, self.values.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_a_variable_and_a_plain_value() {
        let slots =
            Slots::new("CUDA_VISIBLE_DEVICES", &["0", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "2,3"]).unwrap();
        assert_eq!(slots.iter().next().unwrap().to_string(), "CUDA_VISIBLE_DEVICES=0");
        assert_eq!(slots.iter().count(), 3);
        for name in ["", "0A", "A B", "A=B", &"A".repeat(65)] {
            assert_eq!(Slots::new(name, &["0"]), Err(InvalidSlots::Name(name.to_owned())));
        }
        for value in ["", " ", "a b", "\u{fc}", "a\0", &"1".repeat(61)] {
            assert_eq!(Slots::new("A", &["x", value]), Err(InvalidSlots::Value(1, value.to_owned())));
        }
        assert_eq!(Slots::new("A", &[]), Err(InvalidSlots::Empty));
        assert_eq!(Slots::new("A", &["0", "1", "0"]), Err(InvalidSlots::Twice(2, "0".to_owned())));
    }
}
