//! From a core module to a component, and what a component says about itself.

use std::path::Path;

use serde::Serialize;
use souk_sandbox::{HookEngine, HookLimits};
use wasmparser::{Parser, Payload, Validator, WasmFeatures};

/// How the hooks' interfaces are named in the contract.
const CONTRACT: &str = "souk:plugin/";
const HOOKS: [&str; 4] = ["catalog", "pricing", "cart", "checkout"];

/// Why a module is no plugin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ComponentError {
    #[error("the module cannot become a component: {0}")]
    Encode(String),
    #[error("the component is not valid: {0}")]
    Invalid(String),
    #[error(
        "{name} exports no hook; a plugin exports one or more of souk:plugin/{{catalog, pricing, cart, checkout}} (is \
         the SDK's export macro called in src/lib.rs?); it exports {exports}"
    )]
    NoHook { name: String, exports: String },
    #[error("{0}")]
    Contract(String),
}

/// Names at a component's border.
#[derive(Debug, Serialize)]
pub(crate) struct Shape {
    pub(crate) hooks: Vec<String>,
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
}

/// The type of the component lies in a section that the bindings put into the module.
pub(crate) fn encode(core: &[u8]) -> Result<Vec<u8>, ComponentError> {
    let encode = || wit_component::ComponentEncoder::default().validate(true).module(core)?.encode();
    let component = encode().map_err(|e| ComponentError::Encode(format!("{e:#}")))?;
    let mut validator = Validator::new_with_features(WasmFeatures::default());
    validator.validate_all(&component).map_err(|e| ComponentError::Invalid(e.to_string()))?;
    Ok(component)
}

/// Puts the type of a world into a core module whose bindings did not.
pub(crate) fn describe(mut core: Vec<u8>, wit: &Path, world: &str) -> Result<Vec<u8>, ComponentError> {
    let describe = || {
        let mut resolve = wit_parser::Resolve::default();
        let (package, _) = resolve.push_dir(wit)?;
        let world = resolve.select_world(&[package], Some(world))?;
        wit_component::embed_component_metadata(
            &mut core,
            &resolve,
            world,
            wit_component::StringEncoding::UTF8,
        )?;
        Ok(core)
    };
    describe().map_err(|e: anyhow::Error| ComponentError::Encode(format!("{e:#}")))
}

/// The sandbox's own judgement, with its own words: what passes here is not refused by a region for its shape.
pub(crate) fn check_contract(component: &[u8]) -> Result<(), ComponentError> {
    let engine =
        HookEngine::new(HookLimits::default()).map_err(|e| ComponentError::Contract(e.to_string()))?;
    engine.load(component).map(drop).map_err(|e| ComponentError::Contract(e.to_string()))
}

impl Shape {
    pub(crate) fn read(component: &[u8]) -> Result<Self, ComponentError> {
        let invalid = |e: wasmparser::BinaryReaderError| ComponentError::Invalid(e.to_string());
        let mut shape = Self { hooks: Vec::new(), imports: Vec::new(), exports: Vec::new() };
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(component) {
            match payload.map_err(invalid)? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                // The outermost component ends too, after everything else.
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(imports) if depth == 0 => {
                    for import in imports {
                        shape.imports.push(import.map_err(invalid)?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(exports) if depth == 0 => {
                    for export in exports {
                        shape.exports.push(export.map_err(invalid)?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        shape.hooks = HOOKS
            .iter()
            .filter(|hook| shape.exports.iter().any(|export| interface(export) == Some(hook)))
            .map(|hook| (*hook).to_owned())
            .collect();
        Ok(shape)
    }

    /// A plugin is called through a hook, or serves HTTP; anything else would never be called.
    pub(crate) fn check(&self, name: &str) -> Result<(), ComponentError> {
        let serves_http = self.exports.iter().any(|e| {
            e.starts_with("wasi:http/incoming-handler@0.2.") || e.starts_with("wasi:http/handler@0.3.")
        });
        if !self.hooks.is_empty() || serves_http {
            return Ok(());
        }
        let exports = if self.exports.is_empty() { "nothing".to_owned() } else { self.exports.join(", ") };
        Err(ComponentError::NoHook { name: name.to_owned(), exports })
    }
}

/// `souk:plugin/pricing@0.1.0` is `pricing`.
fn interface(export: &str) -> Option<&str> {
    let name = export.strip_prefix(CONTRACT)?;
    Some(name.split_once('@').map_or(name, |(name, _)| name))
}
