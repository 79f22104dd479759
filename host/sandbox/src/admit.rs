//! What may be loaded at all: a component of bounded size and shape that keeps the contract.
//!
//! One streaming pass over the bytes that counts and names, before anything compiles. It does not validate: that is
//! the compiler's first step. What it bounds is what the compiler's time and memory grow with.
//!
//! The limits are tuned so that real JavaScript (StarlingMonkey, 12.5 MB) and Python (18.4 MB, 38 core modules,
//! 107 core instances) components pass.

use std::collections::BTreeSet;

use souk_commerce::site::Hook;
use wasmparser::{Encoding, Parser, Payload};

use crate::fault::{Complaint, Refused, bounded};
use crate::limits::{CORE_INSTANCES_PER_COMPONENT_MAX, MEMORIES_PER_COMPONENT_MAX, TABLES_PER_COMPONENT_MAX};

/// Largest component.
pub const COMPONENT_BYTES_MAX: usize = 32 << 20;
/// Functions with a body, all modules together.
pub const FUNCTIONS_MAX: u32 = 60_000;
/// Bytes of one function's body: the interpreter loops of SpiderMonkey and CPython are the largest that pass.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Locals of one function.
pub const LOCALS_MAX: u64 = 10_000;
/// Types, imports, exports, aliases and globals, all modules and components together.
pub const DECLARATIONS_MAX: u32 = 100_000;
/// Data and element segments. Pre-initialised JavaScript heaps have thousands.
pub const SEGMENTS_MAX: u32 = 100_000;
/// Core modules of one component. Python has 38.
pub const MODULES_MAX: u32 = 128;
/// Components within components, in number and in depth.
pub const COMPONENTS_MAX: u32 = 256;
pub const NESTING_MAX: usize = 16;

/// The version of `souk:plugin` that bindings are generated for. A plugin built for any 0.1.x has the same types.
pub(crate) const CONTRACT: &str = "0.1.0";

const WASM_PAGE_BYTES: u64 = 64 << 10;

/// What the pass found: the names at the component's border.
#[derive(Debug, Default)]
pub struct Shape {
    pub imports: Vec<String>,
    pub exports: Vec<String>,
}

#[derive(Default)]
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
    largest_body: usize,
    most_locals: u64,
}

/// Reads the whole component once. Every limit that it breaks is named.
pub fn inspect(component: &[u8], memory_bytes_max: usize) -> Result<Shape, Refused> {
    if component.len() > COMPONENT_BYTES_MAX {
        let detail = format!("the component has {} bytes, more than {COMPONENT_BYTES_MAX}", component.len());
        return Err(Refused::because("too_large", detail));
    }
    let mut shape = Shape::default();
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
                if depth > NESTING_MAX {
                    let detail = format!("components nest deeper than {NESTING_MAX}");
                    return Err(Refused::because("nesting", detail));
                }
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section.clone() {
                    shape.imports.push(import.map_err(malformed)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section.clone() {
                    shape.exports.push(export.map_err(malformed)?.name.name.to_owned());
                }
            }
            _ => {}
        }
        counts.add(&payload).map_err(malformed)?;
        // A bomb is left as soon as it shows, not when it has been read to its end.
        let complaints = counts.complaints(memory_bytes_max);
        if !complaints.is_empty() {
            return Err(Refused { complaints });
        }
    }
    Ok(shape)
}

fn malformed(error: wasmparser::BinaryReaderError) -> Refused {
    Refused::because("malformed", format!("not readable as WebAssembly: {error}"))
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

/// Which hooks a component exports, and everything about its border that is not as in the contract.
pub fn hook_contract(shape: &Shape) -> Result<Vec<Hook>, Refused> {
    let mut complaints = Vec::new();
    for import in &shape.imports {
        if !matches!(plugin_interface(import), Some("types" | "host")) {
            complaints.push(Complaint {
                code: "unknown_import",
                detail: format!(
                    "imports {:?}; a hook plugin may import only souk:plugin/types and souk:plugin/host at 0.1.x",
                    bounded(import, 120)
                ),
            });
        }
    }
    let mut hooks = BTreeSet::new();
    for export in &shape.exports {
        let hook =
            plugin_interface(export).and_then(|name| Hook::ALL.into_iter().find(|hook| hook.name() == name));
        if let Some(hook) = hook {
            hooks.insert(hook);
        } else if !TOOL_EXPORTS.contains(&export.as_str()) && plugin_interface(export) != Some("types") {
            complaints.push(Complaint {
                code: "unknown_export",
                detail: format!(
                    "exports {:?}; a hook plugin may export souk:plugin/catalog, pricing, cart and checkout at 0.1.x",
                    bounded(export, 120)
                ),
            });
        }
    }
    if hooks.is_empty() {
        complaints.push(Complaint {
            code: "no_hook",
            detail: "exports no hook of souk:plugin at 0.1.x".to_owned(),
        });
    }
    if complaints.is_empty() { Ok(hooks.into_iter().collect()) } else { Err(Refused { complaints }) }
}

/// `pricing` of `souk:plugin/pricing@0.1.7`.
fn plugin_interface(name: &str) -> Option<&str> {
    let (interface, version) = name.strip_prefix("souk:plugin/")?.split_once('@')?;
    let patch = version.strip_prefix("0.1.")?;
    let numeric = !patch.is_empty() && patch.len() <= 5 && patch.bytes().all(|b| b.is_ascii_digit());
    numeric.then_some(interface)
}

/// Whether a component is a `wasi:http` 0.2 plugin. Its imports are checked by linking: a runtime may import any of
/// WASI 0.2 and is granted next to nothing of it.
pub fn http_contract(shape: &Shape) -> Result<(), Refused> {
    if shape.exports.iter().any(|export| export.starts_with("wasi:http/incoming-handler@0.2.")) {
        return Ok(());
    }
    let detail = if shape.exports.iter().any(|export| export.starts_with("wasi:http/")) {
        "exports wasi:http, but not its incoming-handler at 0.2.x, the version that runs here"
    } else {
        "exports no wasi:http/incoming-handler@0.2.x"
    };
    Err(Refused::because("no_handler", detail))
}
