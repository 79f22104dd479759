//! What may be loaded at all: a component of bounded size and shape that keeps the contract.
//!
//! One streaming pass over the bytes that counts and names, before anything compiles. It does not validate: that is
//! the compiler's first step, in a process of its own. What it bounds is what the compiler's time and memory grow
//! with, and everything that it finds is said in one answer. The pass itself takes time linear in the bytes and
//! recurses into nothing that the component's author decides.
//!
//! It also says what a component can do: [`Capabilities`], and what changed of them since the release before.
//!
//! The limits are tuned so that real JavaScript and Python components pass; beside each is what those have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use souk_commerce::site::{Hook, Kind};
use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentOuterAliasKind, ComponentType, ComponentTypeRef,
    Encoding, InstanceTypeDeclaration, Parser, Payload,
};

use crate::fault::{Complaint, Refused, bounded};
use crate::limits::{CORE_INSTANCES_PER_COMPONENT_MAX, MEMORIES_PER_COMPONENT_MAX, TABLES_PER_COMPONENT_MAX};

/// Largest component.
pub const COMPONENT_BYTES_MAX: usize = 32 << 20;
/// Functions with a body, all modules together. Python has 13,533, JavaScript on StarlingMonkey 12,807; the compiler
/// takes 5 KB and 55 us for an empty one.
pub const FUNCTIONS_MAX: u32 = 30_000;
/// Bytes of one function's body: CPython's interpreter loop has 426,843, SpiderMonkey's 171,628.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Bytes of all functions' bodies: what the compiler's time grows with. StarlingMonkey has 9.2 million.
pub const CODE_BYTES_MAX: u64 = 16 << 20;
/// Locals of one function. Python has 271.
pub const LOCALS_MAX: u64 = 5_000;
/// Types, imports, exports, aliases and globals, all modules and components together. Python has 10,673.
pub const DECLARATIONS_MAX: u32 = 50_000;
/// Data and element segments. Pre-initialised JavaScript heaps have 10,002.
pub const SEGMENTS_MAX: u32 = 50_000;
/// Core modules of one component. Python has 38.
pub const MODULES_MAX: u32 = 128;
/// Components within components, in number and in depth. QuickJS has 24, four deep.
pub const COMPONENTS_MAX: u32 = 128;
pub const NESTING_MAX: usize = 16;
/// Names that a component imports, and names that it exports.
pub const NAMES_MAX: usize = 1_000;
/// Complaints in one answer: enough for whoever made a mistake everywhere.
const COMPLAINTS_MAX: usize = 64;
/// A section of types that is looked into for the names of an interface's functions. Reading a type recurses as deep as
/// it is nested, which is at most a third of its bytes; a larger section is only counted.
const TYPES_BYTES_MAX: usize = 2 << 10;
/// Names of functions that are kept of such sections: all of WASI has some 300. Beyond it they are left out of
/// [`Capabilities::imports`].
const FUNCTION_NAMES_MAX: usize = 10_000;

/// The version of `souk:plugin` that bindings are generated for. A plugin built for any 0.1.x has the same types.
pub(crate) const CONTRACT: &str = "0.1.0";

const WASM_PAGE_BYTES: u64 = 64 << 10;

/// What a component can do, as far as its bytes tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What it asks of its host: interfaces, and of each the functions where they are known.
    pub imports: BTreeMap<String, BTreeSet<String>>,
    pub exports: BTreeSet<String>,
    /// The hooks among the exports.
    pub hooks: Vec<Hook>,
    /// The version of `wasi:http` whose handler it exports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Memory that it starts with, all its memories together.
    pub memory_bytes_min: u64,
    /// The component itself.
    pub bytes: u64,
}

/// One difference between two releases. Sizes are told by themselves and are no capabilities.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "change", content = "name", rename_all = "snake_case")]
pub enum Change {
    /// It can now ask this of its host: an interface, or `interface#function`.
    ImportAdded(String),
    ImportRemoved(String),
    /// It can now be asked this.
    ExportAdded(String),
    ExportRemoved(String),
    /// It starts with more memory: `1114112 -> 2097152`.
    MemoryGrown(String),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ImportAdded(name) => write!(f, "now imports {name}"),
            Self::ImportRemoved(name) => write!(f, "no longer imports {name}"),
            Self::ExportAdded(name) => write!(f, "now exports {name}"),
            Self::ExportRemoved(name) => write!(f, "no longer exports {name}"),
            Self::MemoryGrown(bytes) => write!(f, "starts with more memory: {bytes} bytes"),
        }
    }
}

impl Capabilities {
    /// Which engine runs it. One that exports both a hook and a handler is a hook plugin.
    pub fn kind(&self) -> Option<Kind> {
        match (self.hooks.is_empty(), &self.http) {
            (false, _) => Some(Kind::Hooks),
            (true, Some(_)) => Some(Kind::Http),
            (true, None) => None,
        }
    }

    /// What changed from this release to a newer one, in the order of the names.
    pub fn diff(&self, newer: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let (before, after) = (self.flat_imports(), newer.flat_imports());
        changes.extend(after.difference(&before).cloned().map(Change::ImportAdded));
        changes.extend(before.difference(&after).cloned().map(Change::ImportRemoved));
        changes.extend(newer.exports.difference(&self.exports).cloned().map(Change::ExportAdded));
        changes.extend(self.exports.difference(&newer.exports).cloned().map(Change::ExportRemoved));
        if newer.memory_bytes_min > self.memory_bytes_min {
            changes.push(Change::MemoryGrown(format!(
                "{} -> {}",
                self.memory_bytes_min, newer.memory_bytes_min
            )));
        }
        changes
    }

    /// `interface` and `interface#function`.
    fn flat_imports(&self) -> BTreeSet<String> {
        let all = self.imports.iter().flat_map(|(interface, functions)| {
            let functions = functions.iter().map(move |function| format!("{interface}#{function}"));
            std::iter::once(interface.clone()).chain(functions)
        });
        all.collect()
    }
}

/// The names at a component's border, while it is read.
#[derive(Default)]
struct Border {
    /// Each type of the outermost component; of instance types whose functions were read, their names.
    types: Vec<Option<BTreeSet<String>>>,
    imports: BTreeMap<String, BTreeSet<String>>,
    exports: BTreeSet<String>,
    /// Names in `types`.
    function_names: usize,
    too_many: bool,
}

#[derive(Debug, Default)]
struct Counts {
    functions: u32,
    declarations: u32,
    segments: u32,
    modules: u32,
    components: u32,
    core_instances: u32,
    memories: u32,
    tables: u32,
    memory_pages: u64,
    code_bytes: u64,
    largest_body: usize,
    most_locals: u64,
    deepest: usize,
}

/// Judges a hook plugin: everything that is wrong with its shape and its border, in one answer.
pub fn hooks(component: &[u8], memory_bytes_max: usize) -> Result<Capabilities, Refused> {
    judge(component, |capabilities| (memory_bytes_max, contract_of_hooks(capabilities)))
}

/// Judges an HTTP plugin.
pub fn http(component: &[u8], memory_bytes_max: usize) -> Result<Capabilities, Refused> {
    judge(component, |capabilities| (memory_bytes_max, contract_of_http(capabilities)))
}

/// Judges a plugin by the contract of the kind that its exports say it is.
pub fn any(
    component: &[u8],
    hook_memory_bytes_max: usize,
    http_memory_bytes_max: usize,
) -> Result<Capabilities, Refused> {
    judge(component, |capabilities| match capabilities.kind() {
        Some(Kind::Http) => (http_memory_bytes_max, contract_of_http(capabilities)),
        Some(Kind::Hooks) => (hook_memory_bytes_max, contract_of_hooks(capabilities)),
        None => (hook_memory_bytes_max, contract_of_neither(capabilities)),
    })
}

/// Judges the shape alone.
pub fn inspect(component: &[u8], memory_bytes_max: usize) -> Result<Capabilities, Refused> {
    judge(component, |_| (memory_bytes_max, Vec::new()))
}

/// `contract` says how much memory this kind of component may start with, and what is wrong with its border.
fn judge(
    component: &[u8],
    contract: impl FnOnce(&Capabilities) -> (usize, Vec<Complaint>),
) -> Result<Capabilities, Refused> {
    let (capabilities, counts, mut complaints) = survey(component)?;
    let (memory_bytes_max, of_border) = contract(&capabilities);
    complaints.extend(counts.complaints(memory_bytes_max));
    complaints.extend(of_border);
    complaints.truncate(COMPLAINTS_MAX);
    if complaints.is_empty() { Ok(capabilities) } else { Err(Refused { complaints }) }
}

/// What can be said without a contract: only what cannot be read at all ends the pass early.
fn survey(component: &[u8]) -> Result<(Capabilities, Counts, Vec<Complaint>), Refused> {
    if component.len() > COMPONENT_BYTES_MAX {
        let detail = format!("the component has {} bytes, more than {COMPONENT_BYTES_MAX}", component.len());
        return Err(Refused::because("too_large", detail));
    }
    let mut border = Border::default();
    let mut counts = Counts::default();
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload.map_err(malformed)?;
        match &payload {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                let detail = "this is a core module, not a component; `souk plugin build` makes one of it";
                return Err(Refused::because("not_a_component", detail));
            }
            Payload::Version { .. } => {
                depth += 1;
                counts.deepest = counts.deepest.max(depth);
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            _ if depth == 1 => border.add(&payload).map_err(malformed)?,
            _ => {}
        }
        counts.add(&payload).map_err(malformed)?;
    }
    let mut complaints = Vec::new();
    if border.too_many {
        let detail = format!("it imports or exports more than {NAMES_MAX} names");
        complaints.push(Complaint::new("too_many_names", &detail));
    }
    let hooks = Hook::ALL
        .into_iter()
        .filter(|hook| border.exports.iter().any(|export| plugin_interface(export) == Some(hook.name())));
    let capabilities = Capabilities {
        hooks: hooks.collect(),
        http: border.exports.iter().find_map(|export| http_version(export)).map(str::to_owned),
        imports: border.imports,
        exports: border.exports,
        memory_bytes_min: counts.memory_pages.saturating_mul(WASM_PAGE_BYTES),
        bytes: component.len() as u64,
    };
    Ok((capabilities, counts, complaints))
}

fn malformed(error: wasmparser::BinaryReaderError) -> Refused {
    Refused::because("malformed", format!("not readable as WebAssembly: {error}"))
}

impl Border {
    /// A section of the outermost component. Keeps count of its types, so that an import can be followed to the functions
    /// that its interface has.
    fn add(&mut self, payload: &Payload<'_>) -> wasmparser::Result<()> {
        match payload {
            Payload::ComponentTypeSection(section) if section.range().len() <= TYPES_BYTES_MAX => {
                for ty in section.clone() {
                    let functions = functions_of(&ty?);
                    let names = functions.as_ref().map_or(0, BTreeSet::len);
                    let kept = self.function_names + names <= FUNCTION_NAMES_MAX;
                    self.function_names += if kept { names } else { 0 };
                    self.add_type(functions.filter(|_| kept));
                }
            }
            Payload::ComponentTypeSection(section) => {
                for _ in 0..section.count().min(DECLARATIONS_MAX) {
                    self.add_type(None);
                }
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section.clone() {
                    if let ComponentAlias::InstanceExport { kind: ComponentExternalKind::Type, .. }
                    | ComponentAlias::Outer { kind: ComponentOuterAliasKind::Type, .. } = alias?
                    {
                        self.add_type(None);
                    }
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section.clone() {
                    let import = import?;
                    if matches!(import.ty, ComponentTypeRef::Type(_)) {
                        self.add_type(None);
                    }
                    let name = import.name.name;
                    // The compiler refuses a name that is there twice; here it must cost no copy of its functions.
                    if self.imports.contains_key(name) {
                        continue;
                    }
                    if self.imports.len() == NAMES_MAX {
                        self.too_many = true;
                        continue;
                    }
                    let functions = match import.ty {
                        ComponentTypeRef::Instance(index) => {
                            self.types.get(index as usize).cloned().flatten()
                        }
                        _ => None,
                    };
                    self.imports.insert(name.to_owned(), functions.unwrap_or_default());
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section.clone() {
                    let export = export?;
                    if export.kind == ComponentExternalKind::Type {
                        self.add_type(None);
                    }
                    if self.exports.len() < NAMES_MAX {
                        self.exports.insert(export.name.name.to_owned());
                    } else {
                        self.too_many = true;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn add_type(&mut self, functions: Option<BTreeSet<String>>) {
        // Beyond the limit the component is refused anyway.
        if self.types.len() < DECLARATIONS_MAX as usize {
            self.types.push(functions);
        }
    }
}

fn functions_of(ty: &ComponentType<'_>) -> Option<BTreeSet<String>> {
    let ComponentType::Instance(declarations) = ty else { return None };
    let functions = declarations.iter().filter_map(|declaration| match declaration {
        InstanceTypeDeclaration::Export { name, ty: ComponentTypeRef::Func(_) } => Some(name.name.to_owned()),
        _ => None,
    });
    Some(functions.take(NAMES_MAX).collect())
}

impl Counts {
    fn add(&mut self, payload: &Payload<'_>) -> wasmparser::Result<()> {
        let add = |count: &mut u32, more: u32| *count = count.saturating_add(more);
        match payload {
            Payload::TypeSection(section) => add(&mut self.declarations, section.count()),
            Payload::ImportSection(section) => add(&mut self.declarations, section.count()),
            Payload::GlobalSection(section) => add(&mut self.declarations, section.count()),
            Payload::ExportSection(section) => add(&mut self.declarations, section.count()),
            Payload::TagSection(section) => add(&mut self.declarations, section.count()),
            Payload::CoreTypeSection(section) => add(&mut self.declarations, section.count()),
            Payload::ComponentTypeSection(section) => add(&mut self.declarations, section.count()),
            Payload::ComponentAliasSection(section) => add(&mut self.declarations, section.count()),
            Payload::ComponentCanonicalSection(section) => add(&mut self.declarations, section.count()),
            Payload::ComponentImportSection(section) => add(&mut self.declarations, section.count()),
            Payload::ComponentExportSection(section) => add(&mut self.declarations, section.count()),
            Payload::ComponentInstanceSection(section) => add(&mut self.declarations, section.count()),
            Payload::InstanceSection(section) => add(&mut self.core_instances, section.count()),
            Payload::ElementSection(section) => add(&mut self.segments, section.count()),
            Payload::DataSection(section) => add(&mut self.segments, section.count()),
            Payload::TableSection(section) => add(&mut self.tables, section.count()),
            Payload::ModuleSection { .. } => add(&mut self.modules, 1),
            Payload::ComponentSection { .. } => add(&mut self.components, 1),
            Payload::CodeSectionStart { count, .. } => add(&mut self.functions, *count),
            Payload::MemorySection(section) => {
                for memory in section.clone() {
                    add(&mut self.memories, 1);
                    self.memory_pages = self.memory_pages.saturating_add(memory?.initial);
                }
            }
            Payload::CodeSectionEntry(body) => {
                self.largest_body = self.largest_body.max(body.as_bytes().len());
                self.code_bytes = self.code_bytes.saturating_add(body.as_bytes().len() as u64);
                let mut locals = 0_u64;
                for group in body.get_locals_reader()? {
                    locals = locals.saturating_add(group?.0.into());
                }
                self.most_locals = self.most_locals.max(locals);
            }
            _ => {}
        }
        Ok(())
    }

    fn complaints(&self, memory_bytes_max: usize) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        let mut at_most = |code, what: &str, count: u64, count_max: u64| {
            if count > count_max {
                complaints
                    .push(Complaint { code, detail: format!("{what}: {count}, more than {count_max}") });
            }
        };
        at_most("too_many_functions", "functions", self.functions.into(), FUNCTIONS_MAX.into());
        at_most("body_too_large", "bytes of one function", self.largest_body as u64, BODY_BYTES_MAX as u64);
        at_most("too_much_code", "bytes of all functions", self.code_bytes, CODE_BYTES_MAX);
        at_most("nesting", "components within components", self.deepest as u64, NESTING_MAX as u64);
        at_most("too_many_locals", "locals of one function", self.most_locals, LOCALS_MAX);
        at_most("too_many_declarations", "declarations", self.declarations.into(), DECLARATIONS_MAX.into());
        at_most("too_many_segments", "data and element segments", self.segments.into(), SEGMENTS_MAX.into());
        at_most("too_many_modules", "core modules", self.modules.into(), MODULES_MAX.into());
        at_most("too_many_components", "nested components", self.components.into(), COMPONENTS_MAX.into());
        at_most(
            "too_many_instances",
            "core instances",
            self.core_instances.into(),
            CORE_INSTANCES_PER_COMPONENT_MAX.into(),
        );
        at_most("too_many_memories", "memories", self.memories.into(), MEMORIES_PER_COMPONENT_MAX.into());
        at_most("too_many_tables", "tables", self.tables.into(), TABLES_PER_COMPONENT_MAX.into());
        at_most(
            "memory_minimum",
            "bytes of memory that it starts with",
            self.memory_pages.saturating_mul(WASM_PAGE_BYTES),
            memory_bytes_max as u64,
        );
        complaints
    }
}

/// Exports that tools leave behind. They are not called.
const TOOL_EXPORTS: [&str; 3] = ["init", "exports", "_initialize"];

/// Everything about a hook plugin's border that is not as in the contract.
fn contract_of_hooks(capabilities: &Capabilities) -> Vec<Complaint> {
    let quoted = |name: &str| format!("{:?}", bounded(name, 120));
    let imports = capabilities.imports.keys().filter(|import| !is_of_hooks(import));
    let mut complaints: Vec<_> = imports
        .map(|import| {
            let detail = format!(
                "imports {}; a hook plugin may import only souk:plugin/types and souk:plugin/host at 0.1.x",
                quoted(import)
            );
            Complaint::new("unknown_import", &detail)
        })
        .collect();
    for export in &capabilities.exports {
        let known = plugin_interface(export)
            .is_some_and(|name| name == "types" || Hook::ALL.into_iter().any(|hook| hook.name() == name));
        if !known && !TOOL_EXPORTS.contains(&export.as_str()) {
            let detail = format!(
                "exports {}; a hook plugin may export souk:plugin/catalog, pricing, cart and checkout at 0.1.x",
                quoted(export)
            );
            complaints.push(Complaint::new("unknown_export", &detail));
        }
    }
    if capabilities.hooks.is_empty() {
        complaints.push(Complaint::new("no_hook", "exports no hook of souk:plugin at 0.1.x"));
    }
    complaints
}

/// What is neither a hook plugin nor an HTTP plugin, whatever it was meant to be: what no plugin may import is said too.
fn contract_of_neither(capabilities: &Capabilities) -> Vec<Complaint> {
    let detail =
        "exports neither a hook of souk:plugin at 0.1.x nor a handler of wasi:http at 0.2.x or 0.3.x";
    let imports = capabilities.imports.keys();
    let foreign = imports.filter(|import| !is_of_hooks(import) && !import.starts_with("wasi:"));
    let of_imports = foreign.map(|import| {
        let detail = format!(
            "imports {:?}; a plugin may import of souk:plugin at 0.1.x or of WASI only",
            bounded(import, 120)
        );
        Complaint::new("unknown_import", &detail)
    });
    std::iter::once(Complaint::new("no_hook", detail)).chain(of_imports).collect()
}

/// Whether a hook plugin may import it.
fn is_of_hooks(import: &str) -> bool {
    matches!(plugin_interface(import), Some("types" | "host"))
}

/// Which hooks a component exports, and everything about its border that is not as in the contract.
pub fn hook_contract(capabilities: &Capabilities) -> Result<Vec<Hook>, Refused> {
    let complaints = contract_of_hooks(capabilities);
    if complaints.is_empty() { Ok(capabilities.hooks.clone()) } else { Err(Refused { complaints }) }
}

/// The hooks among the names that a compiled component exports.
pub(crate) fn hooks_among<'a>(exports: impl Iterator<Item = &'a str>) -> Vec<Hook> {
    let named: BTreeSet<_> = exports.filter_map(plugin_interface).collect();
    Hook::ALL.into_iter().filter(|hook| named.contains(hook.name())).collect()
}

/// `pricing` of `souk:plugin/pricing@0.1.7`.
fn plugin_interface(name: &str) -> Option<&str> {
    let (interface, version) = name.strip_prefix("souk:plugin/")?.split_once('@')?;
    let patch = version.strip_prefix("0.1.")?;
    let numeric = !patch.is_empty() && patch.len() <= 5 && patch.bytes().all(|b| b.is_ascii_digit());
    numeric.then_some(interface)
}

/// `0.2.10` of `wasi:http/incoming-handler@0.2.10`, `0.3.0` of `wasi:http/handler@0.3.0`.
fn http_version(export: &str) -> Option<&str> {
    let version =
        export.strip_prefix("wasi:http/incoming-handler@").filter(|version| version.starts_with("0.2."));
    version
        .or_else(|| export.strip_prefix("wasi:http/handler@").filter(|version| version.starts_with("0.3.")))
}

fn contract_of_http(capabilities: &Capabilities) -> Vec<Complaint> {
    if capabilities.http.is_some() {
        return Vec::new();
    }
    let detail = if capabilities.exports.iter().any(|export| export.starts_with("wasi:http/")) {
        "exports wasi:http, but neither its incoming-handler at 0.2.x nor its handler at 0.3.x, which run here"
    } else {
        "exports neither wasi:http/incoming-handler@0.2.x nor wasi:http/handler@0.3.x"
    };
    vec![Complaint::new("no_handler", detail)]
}

/// Whether a component is a `wasi:http` plugin. Its imports are checked by linking: a runtime may import any of WASI and
/// is granted next to nothing of it.
pub fn http_contract(capabilities: &Capabilities) -> Result<(), Refused> {
    let complaints = contract_of_http(capabilities);
    if complaints.is_empty() { Ok(()) } else { Err(Refused { complaints }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How the limits were tuned: `SOUK_COMPONENTS=a.wasm:b.wasm cargo test -p souk-sandbox figures -- --ignored --nocapture`
    #[test]
    #[ignore = "prints what real components have, for whoever tunes the limits"]
    fn figures_of_real_components() {
        let files = std::env::var("SOUK_COMPONENTS").expect("SOUK_COMPONENTS names files");
        for file in files.split(':') {
            let component = std::fs::read(file).unwrap();
            let (capabilities, counts, complaints) = survey(&component).unwrap();
            let (imports, exports) = (capabilities.imports.len(), capabilities.exports.len());
            println!("{file}: {} bytes, {imports} imports, {exports} exports, {counts:?}", component.len());
            assert!(
                complaints.is_empty() && counts.complaints(64 << 20).is_empty(),
                "{file}: {complaints:?}"
            );
        }
    }

    /// A section: its number, its length and its content.
    fn section(id: u8, content: &[u8]) -> Vec<u8> {
        let mut section = vec![id];
        let mut length = content.len();
        loop {
            let low = (length & 0x7f) as u8;
            length >>= 7;
            section.push(if length == 0 { low } else { low | 0x80 });
            if length == 0 {
                break;
            }
        }
        section.extend(content);
        section
    }

    #[test]
    fn functions_are_kept_of_so_many_interfaces_and_copied_once_for_each_name() {
        // An instance type with 200 functions `aa`, `ab`, …, in a section of its own.
        let mut interface = vec![1, 0x42, 0xc9, 0x01, 0x01, 0x40, 0, 1, 0];
        for i in 0..200_u8 {
            interface.extend([0x04, 0, 2, b'a' + i / 26, b'a' + i % 26, 1, 0]);
        }
        let mut component = b"\0asm\x0d\0\x01\0".to_vec();
        for _ in 0..100 {
            component.extend(section(7, &interface));
        }
        // 100 times the same name, with the first of the types.
        let mut imports = vec![100];
        for _ in 0..100 {
            imports.extend([0, 1, b'x', 5, 0]);
        }
        component.extend(section(10, &imports));
        let mut border = Border::default();
        for payload in Parser::new(0).parse_all(&component) {
            border.add(&payload.unwrap()).unwrap();
        }
        assert_eq!(border.types.len(), 100);
        assert_eq!(border.function_names, FUNCTION_NAMES_MAX);
        assert_eq!(border.types.iter().flatten().count(), FUNCTION_NAMES_MAX / 200);
        assert_eq!((border.imports.len(), border.imports["x"].len()), (1, 200));
    }

    fn capabilities(imports: &[(&str, &[&str])], exports: &[&str], memory_bytes_min: u64) -> Capabilities {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Capabilities {
            imports: imports.iter().map(|(name, functions)| ((*name).to_owned(), set(functions))).collect(),
            exports: set(exports),
            memory_bytes_min,
            ..Capabilities::default()
        }
    }

    #[test]
    fn what_changed_between_two_releases_is_told_by_name() {
        let host = "souk:plugin/host@0.1.0";
        let old = capabilities(&[(host, &["log"])], &["souk:plugin/pricing@0.1.0"], 1 << 20);
        let new = capabilities(
            &[(host, &["kv-get"])],
            &["souk:plugin/pricing@0.1.0", "souk:plugin/cart@0.1.0"],
            2 << 20,
        );
        let changes: Vec<_> = old.diff(&new).iter().map(ToString::to_string).collect();
        assert_eq!(
            changes,
            [
                "now imports souk:plugin/host@0.1.0#kv-get",
                "no longer imports souk:plugin/host@0.1.0#log",
                "now exports souk:plugin/cart@0.1.0",
                "starts with more memory: 1048576 -> 2097152 bytes",
            ]
        );
        assert_eq!(old.diff(&old), []);
        let json = serde_json::to_value(&old.diff(&new)[0]).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"change": "import_added", "name": "souk:plugin/host@0.1.0#kv-get"})
        );
    }
}
