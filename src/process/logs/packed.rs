//! A segment of a run that has ended, compressed.
//!
//! Plain gzip (RFC 1952), which `zcat` reads, with a member of its own for every [`BLOCK`] bytes, so that what stands at an
//! offset is found without decompressing all that stands before it. Each member's header tells both of its sizes in an
//! extra field named "CS".

use std::fs::File;
use std::io::{self, Read, Write};

use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};

/// How many bytes of output one member holds; the last one may hold fewer.
const BLOCK: usize = 256 * 1024;

/// A member's header up to the end of its extra field.
const HEADER: usize = 10 + 2 + EXTRA.len();
/// "CS", the length of what follows, and the member's sizes before and after compression, which are filled in later.
const EXTRA: [u8; 12] = [b'C', b'S', 8, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Compresses all of `source` into `target`, and says how many bytes of output that were.
pub(super) fn pack(source: &mut impl Read, target: &mut impl Write) -> io::Result<u64> {
    let mut total = 0;
    let mut block = Vec::with_capacity(BLOCK);
    loop {
        block.clear();
        source.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
        if block.is_empty() {
            return Ok(total);
        }
        target.write_all(&member(&block)?)?;
        total += block.len() as u64;
    }
}

fn member(block: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().extra(EXTRA).write(Vec::new(), Compression::fast());
    encoder.write_all(block)?;
    let mut member = encoder.finish()?;
    let sizes = [block.len(), member.len()].map(|size| u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
    if let Some(place) = member.get_mut(HEADER - 8..HEADER) {
        place.copy_from_slice(sizes.as_flattened());
    }
    Ok(member)
}

/// A compressed segment that is being read.
#[derive(Debug)]
pub(super) struct Packed {
    file: File,
    /// Where the members start that have been found so far, and where the next one does.
    starts: Vec<u64>,
    /// The member that was read last.
    block: Option<(usize, Vec<u8>)>,
}

impl Packed {
    pub(super) fn new(file: File) -> Self {
        Self { file, starts: vec![0], block: None }
    }

    /// Reads what stands at `at` of the segment; nothing at its end, and where it is damaged.
    pub(super) fn read_at(&mut self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let (index, within) = (at / BLOCK as u64, at % BLOCK as u64);
        let (Ok(index), Ok(within)) = (usize::try_from(index), usize::try_from(within)) else { return Ok(0) };
        if self.block.as_ref().is_none_or(|(read, _)| *read != index) {
            let Some(block) = self.decompressed(index)? else { return Ok(0) };
            self.block = Some((index, block));
        }
        let rest = self.block.as_ref().and_then(|(_, block)| block.get(within..)).unwrap_or_default();
        let length = rest.len().min(bytes.len());
        bytes.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Ok(length)
    }

    fn decompressed(&mut self, index: usize) -> io::Result<Option<Vec<u8>>> {
        while self.starts.len() <= index + 1 {
            let Some(start) = self.starts.last().copied() else { return Ok(None) };
            let mut header = [0; HEADER];
            if super::read_at(&self.file, &mut header, start)? < HEADER {
                return Ok(None);
            }
            let [_, _, _, _, _, _, _, _, _, _, _, _, name @ .., _, _, _, _, _, _, _, _] = header;
            let [.., a, b, c, d] = header;
            if name != [b'C', b'S', 8, 0] {
                return Ok(None);
            }
            let length = u64::from(u32::from_le_bytes([a, b, c, d]));
            // A member is never shorter than its header, and what claims to be would never come to an end.
            if length < HEADER as u64 {
                return Ok(None);
            }
            self.starts.push(start.saturating_add(length));
        }
        let (Some(start), Some(end)) = (self.starts.get(index), self.starts.get(index + 1)) else { return Ok(None) };
        // No member of ours is larger than what it holds by more than a little; others have no claim on our memory.
        let length = usize::try_from(end - start).unwrap_or(usize::MAX).min(2 * BLOCK);
        let mut member = vec![0; length];
        let read = super::read_at(&self.file, &mut member, *start)?;
        let mut block = Vec::new();
        let decoder = GzDecoder::new(member.get(..read).unwrap_or_default());
        // One more than there may be, so that the end with its checksum is read too.
        match decoder.take(BLOCK as u64 + 1).read_to_end(&mut block) {
            Ok(length) if length <= BLOCK => Ok(Some(block)),
            // Damage; what is whole of the other members is still read.
            Ok(_) | Err(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(bytes: &[u8]) -> (tempfile::NamedTempFile, Packed) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(pack(&mut &*bytes, file.as_file_mut()).unwrap(), bytes.len() as u64);
        let packed = Packed::new(File::open(file.path()).unwrap());
        (file, packed)
    }

    fn numbered(lines: u32) -> Vec<u8> {
        (0..lines).flat_map(|number| format!("{number:09}\n").into_bytes()).collect()
    }

    #[test]
    fn any_offset_is_read_and_the_whole_is_plain_gzip() {
        let all = numbered(100_000);
        let (file, mut packed) = packed(&all);
        for at in [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 17, all.len() - 5, 12, all.len()] {
            let mut bytes = [0; 9];
            let length = packed.read_at(&mut bytes, at as u64).unwrap();
            let within = BLOCK - at % BLOCK;
            assert_eq!(bytes[..length], all[at..(at + 9.min(within)).min(all.len())], "at {at}");
        }
        let mut whole = Vec::new();
        flate2::read::MultiGzDecoder::new(File::open(file.path()).unwrap()).read_to_end(&mut whole).unwrap();
        assert_eq!(whole, all);
        assert!(file.path().metadata().unwrap().len() < all.len() as u64 / 2);
    }

    #[test]
    fn damage_ends_what_is_read_and_nothing_else() {
        let all = numbered(100_000);
        let (file, _) = packed(&all);
        let whole = std::fs::read(file.path()).unwrap();
        for (at, byte) in [(0, 0), (12, b'X'), (20, 0), (23, 0xff), (30, 0x55), (whole.len() / 2, 0xaa)] {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            std::fs::write(file.path(), &damaged).unwrap();
            let mut packed = Packed::new(File::open(file.path()).unwrap());
            for at in (0..all.len() as u64).step_by(50_000) {
                let mut bytes = [0; 100];
                let length = packed.read_at(&mut bytes, at).unwrap();
                let at = usize::try_from(at).unwrap();
                assert!(length == 0 || bytes[..length] == all[at..at + length], "at {at}");
            }
        }
    }
}
