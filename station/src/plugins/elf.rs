//! What a library is, read from its bytes: nothing of it runs, nothing is mapped.
//!
//! A file that is cut inside a loaded segment would kill whoever maps it with SIGBUS; so every bound is looked at here,
//! before the loader sees the file.

use std::ffi::CStr;

use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _, SectionHeader as _};
use object::{Endianness, Object as _};
use quilt_plugin_api::abi;
use serde::{Deserialize, Serialize};

use super::LoadError;

/// What a plugin's file says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The plugin's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The version of quilt-plugin-api it is built with; empty for other languages.
    pub sdk: String,
    /// Of the contract: major, lowest and highest minor version.
    pub abi: (u32, u32, u32),
    /// Its roles.
    pub roles: Vec<String>,
    /// Whether a panic of it ends its process.
    pub aborts: bool,
    /// Libraries that it needs.
    pub needed: Vec<String>,
    /// The glibc that it needs at least, as in `2.34`.
    pub glibc: Option<String>,
    /// Functions and data that it exports.
    pub exports: Vec<String>,
    /// Things that a reader should know, each in words.
    pub remarks: Vec<String>,
}

type Header = FileHeader64<Endianness>;

#[cfg(target_arch = "x86_64")]
const MACHINE: (u16, &str) = (elf::EM_X86_64, "x86_64");
#[cfg(target_arch = "aarch64")]
const MACHINE: (u16, &str) = (elf::EM_AARCH64, "aarch64");

/// Looks at a library.
///
/// # Errors
///
/// Why it cannot be a plugin of this machine.
pub(crate) fn inspect(data: &[u8]) -> Result<Inspection, LoadError> {
    if data.len() < 64 || data[..4] != elf::ELFMAG {
        return Err(if data.starts_with(&elf::ELFMAG) { cut("its header") } else { LoadError::NotElf });
    }
    if data[4] != elf::ELFCLASS64 {
        return Err(other_machine("a 32-bit machine".into()));
    }
    let header = Header::parse(data).map_err(|error| damaged(&error))?;
    let endian = header.endian().map_err(|error| damaged(&error))?;
    let machine = header.e_machine(endian);
    if machine != MACHINE.0 || endian != Endianness::Little {
        return Err(other_machine(machine_name(machine)));
    }
    match header.e_type(endian) {
        elf::ET_DYN => {}
        elf::ET_EXEC => return Err(LoadError::NotShared("a program".into())),
        elf::ET_REL => return Err(LoadError::NotShared("an object file".into())),
        elf::ET_CORE => return Err(LoadError::NotShared("a core dump".into())),
        other => return Err(LoadError::NotShared(format!("an ELF file of type {other}"))),
    }
    check_bounds(header, endian, data)?;
    let mut found = Inspection::default();
    let note = note(header, endian, data)?.ok_or(LoadError::NoNote)?;
    read_note(&mut found, note)?;
    read_dynamic(&mut found, header, endian, data)?;
    read_symbols(&mut found, data)?;
    read_libc(&mut found, header, endian, data)?;
    Ok(found)
}

fn damaged(error: &object::Error) -> LoadError {
    LoadError::Truncated(error.to_string())
}

fn cut(what: &str) -> LoadError {
    LoadError::Truncated(format!("{what} is not whole"))
}

fn other_machine(theirs: String) -> LoadError {
    LoadError::WrongArchitecture { theirs, ours: MACHINE.1.into() }
}

fn machine_name(machine: u16) -> String {
    match machine {
        elf::EM_X86_64 => "x86_64".into(),
        elf::EM_AARCH64 => "aarch64".into(),
        elf::EM_ARM => "arm".into(),
        elf::EM_386 => "i386".into(),
        elf::EM_RISCV => "riscv".into(),
        other => format!("machine {other}"),
    }
}

/// Every part that a loader or reader follows lies inside the file.
fn check_bounds(header: &Header, endian: Endianness, data: &[u8]) -> Result<(), LoadError> {
    let length = data.len() as u64;
    let segments = header.program_headers(endian, data).map_err(|error| damaged(&error))?;
    let mut loads = 0;
    for (at, segment) in segments.iter().enumerate() {
        let end = segment.p_offset(endian).checked_add(segment.p_filesz(endian));
        if segment.p_type(endian) != elf::PT_GNU_STACK && end.is_none_or(|end| end > length) {
            let end = end.map_or_else(|| "beyond all bounds".into(), |end| end.to_string());
            return Err(LoadError::Truncated(format!("segment {at} ends at byte {end}, the file at {length}")));
        }
        if segment.p_type(endian) == elf::PT_LOAD {
            loads += 1;
            if segment.p_filesz(endian) > segment.p_memsz(endian) || !aligned(segment, endian) {
                return Err(LoadError::Truncated(format!("segment {at} contradicts itself")));
            }
        }
    }
    if loads == 0 {
        return Err(cut("its table of segments"));
    }
    let sections = u64::from(header.e_shnum(endian)) * u64::from(header.e_shentsize(endian));
    let end = header.e_shoff(endian).checked_add(sections);
    if header.e_shoff(endian) != 0 && end.is_none_or(|end| end > length) {
        return Err(cut("its table of sections"));
    }
    Ok(())
}

fn aligned(segment: &elf::ProgramHeader64<Endianness>, endian: Endianness) -> bool {
    let (offset, address, align) = (segment.p_offset(endian), segment.p_vaddr(endian), segment.p_align(endian));
    align <= 1 || (align.is_power_of_two() && offset % align == address % align)
}

/// The text of the quilt note: through segments, which a file must have to be loaded, or else through sections.
fn note<'d>(header: &Header, endian: Endianness, data: &'d [u8]) -> Result<Option<&'d str>, LoadError> {
    let segments = header.program_headers(endian, data).map_err(|error| damaged(&error))?;
    let mut texts = Vec::new();
    for segment in segments {
        if let Some(mut notes) = segment.notes(endian, data).map_err(|error| damaged(&error))? {
            while let Ok(Some(note)) = notes.next() {
                if note.name() == abi::NOTE_NAME.as_bytes() && note.n_type(endian) == abi::NOTE_TYPE {
                    texts.push(note.desc());
                }
            }
        }
    }
    if let (true, Ok(sections)) = (texts.is_empty(), header.sections(endian, data)) {
        for section in sections.iter() {
            if let Ok(Some(mut notes)) = section.notes(endian, data) {
                while let Ok(Some(note)) = notes.next() {
                    if note.name() == abi::NOTE_NAME.as_bytes() && note.n_type(endian) == abi::NOTE_TYPE {
                        texts.push(note.desc());
                    }
                }
            }
        }
    }
    let text = texts.first().map(|text| std::str::from_utf8(text));
    text.transpose().map_err(|_| LoadError::Describe("its note is no text".into()))
}

fn read_note(found: &mut Inspection, text: &str) -> Result<(), LoadError> {
    for line in text.lines() {
        // Keys that a newer note has are none of ours.
        match line.split_once('=') {
            Some(("name", name)) => found.name = name.into(),
            Some(("version", version)) => found.version = version.into(),
            Some(("sdk", sdk)) => found.sdk = sdk.into(),
            Some(("abi", versions)) => found.abi = read_versions(versions)?,
            Some(("panic", how)) => found.aborts = how == "abort",
            Some(("role", role)) => found.roles.push(role.into()),
            _ => {}
        }
    }
    let name: Result<quilt_protocol::Name, _> = found.name.parse();
    name.map_err(|error| LoadError::Describe(format!("the name in its note: {error}")))?;
    let (major, lowest, highest) = found.abi;
    if major != abi::MAJOR {
        return Err(LoadError::Major { theirs: major, ours: abi::MAJOR });
    }
    if lowest > abi::MINOR {
        return Err(LoadError::Minor { theirs: (lowest, highest), ours: abi::MINOR });
    }
    Ok(())
}

/// `MAJOR.LOWEST-HIGHEST`.
fn read_versions(text: &str) -> Result<(u32, u32, u32), LoadError> {
    let parts = text.split_once('.').and_then(|(major, minors)| {
        let (lowest, highest) = minors.split_once('-')?;
        Some((major.parse().ok()?, lowest.parse().ok()?, highest.parse().ok()?))
    });
    parts.ok_or_else(|| LoadError::Describe(format!("the contract's version in its note: {text:?}")))
}

fn read_dynamic(found: &mut Inspection, header: &Header, endian: Endianness, data: &[u8]) -> Result<(), LoadError> {
    let segments = header.program_headers(endian, data).map_err(|error| damaged(&error))?;
    let mut names = Vec::new();
    let (mut table, mut constructors) = (None, 0);
    for segment in segments {
        if segment.p_type(endian) == elf::PT_GNU_STACK && segment.p_flags(endian) & elf::PF_X != 0 {
            found.remarks.push("wants an executable stack".into());
        }
        let Some(entries) = segment.dynamic(endian, data).map_err(|error| damaged(&error))? else { continue };
        for entry in entries {
            match (entry.tag(endian), entry.val(endian)) {
                (elf::DT_NULL, _) => break,
                (elf::DT_NEEDED, at) => names.push(at),
                (elf::DT_STRTAB, at) => table = Some(at),
                (elf::DT_INIT_ARRAYSZ, size) => constructors = size / 8,
                (elf::DT_TEXTREL, _) => found.remarks.push("has relocations in its code".into()),
                (elf::DT_FLAGS, flags) if flags & u64::from(elf::DF_STATIC_TLS) != 0 => {
                    found.remarks.push("wants thread-local memory at the start of a program".into());
                }
                (elf::DT_FLAGS_1, flags) if flags & u64::from(elf::DF_1_PIE) != 0 => {
                    return Err(LoadError::NotShared("a program".into()));
                }
                _ => {}
            }
        }
    }
    if constructors > 0 {
        found.remarks.push(format!("runs {constructors} constructors when it is loaded"));
    }
    let strings = table.and_then(|address| {
        let inside = |segment: &&elf::ProgramHeader64<Endianness>| {
            let start = segment.p_vaddr(endian);
            segment.p_type(endian) == elf::PT_LOAD
                && (start..start.saturating_add(segment.p_filesz(endian))).contains(&address)
        };
        let segment = segments.iter().find(inside)?;
        let at = address - segment.p_vaddr(endian) + segment.p_offset(endian);
        data.get(usize::try_from(at).ok()?..)
    });
    for name in names {
        let text = strings.and_then(|strings| strings.get(usize::try_from(name).ok()?..));
        let text = text.and_then(|text| CStr::from_bytes_until_nul(text).ok());
        found.needed.push(text.ok_or_else(|| cut("its table of names"))?.to_string_lossy().into_owned());
    }
    Ok(())
}

fn read_symbols(found: &mut Inspection, data: &[u8]) -> Result<(), LoadError> {
    let file = ElfFile64::<Endianness>::parse(data).map_err(|error| damaged(&error))?;
    let exports = file.exports().map_err(|error| damaged(&error))?;
    found.exports = exports.iter().map(|export| String::from_utf8_lossy(export.name()).into_owned()).collect();
    found.exports.sort();
    // A file without a table of sections has exports that only the loader finds.
    let readable = file.elf_section_table().iter().len() > 1;
    if readable && !found.exports.iter().any(|name| name == abi::ENTRY_SYMBOL) {
        return Err(LoadError::NoSymbol("it is not among what the file exports".into()));
    }
    Ok(())
}

/// The newest glibc version that any symbol wants, against this machine's.
fn read_libc(found: &mut Inspection, header: &Header, endian: Endianness, data: &[u8]) -> Result<(), LoadError> {
    let Ok(sections) = header.sections(endian, data) else { return Ok(()) };
    let Ok(Some((mut needs, link))) = sections.gnu_verneed(endian, data) else { return Ok(()) };
    let strings = sections.strings(endian, data, link).map_err(|error| damaged(&error))?;
    let mut newest = None;
    while let Some((_, mut versions)) = needs.next().map_err(|error| damaged(&error))? {
        while let Some(version) = versions.next().map_err(|error| damaged(&error))? {
            let name = version.name(endian, strings).map_err(|error| damaged(&error))?;
            let name = String::from_utf8_lossy(name);
            newest = newest.max(name.strip_prefix("GLIBC_").and_then(numbers));
        }
    }
    let text = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    found.glibc = newest.map(text);
    let ours = libc_version();
    match (newest, numbers(&ours)) {
        (Some(need), Some(have)) if need > have => Err(LoadError::WrongLibc { need: text(need), have: ours }),
        _ => Ok(()),
    }
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// This machine's glibc.
fn libc_version() -> String {
    // SAFETY: it gives a constant text.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    version.to_string_lossy().into_owned()
}
