//! The parts of WASI that no guest is ever given, files and sockets: linked, because language runtimes import all of it
//! to start, and closed. No code that opens a file or a socket for a guest is linked into the process.
//!
//! A function of theirs answers with its interface's own word for no (`access-denied`, `not-permitted`) or with nothing
//! (no directories, no error code). Where its type has room for neither it takes a descriptor or a socket, and as nobody
//! has one, a call of it ends the guest.
//!
//! Which functions there are is read from the component, so that the next minor version of WASI is closed as well. And
//! they have no types of their own in the host: the typed ones of both versions were half of what this crate compiled.

use wasmtime::StoreContextMut;
use wasmtime::component::types::{ComponentFunc, ComponentItem};
use wasmtime::component::{
    Component, Linker, LinkerInstance, Resource, ResourceAny, ResourceType, Type, Val,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, IoError};

use super::guest::Guest;

const NAMESPACES: [&str; 2] = ["wasi:filesystem/", "wasi:sockets/"];
const VERSIONS: [&str; 2] = ["@0.2.", "@0.3."];
/// What these interfaces say to somebody who may not.
const REFUSALS: [&str; 2] = ["access-denied", "not-permitted"];

/// A descriptor, a socket, a stream of directory entries: there is none. The network itself, which a guest can hold and
/// do nothing with.
struct Closed;

/// What a closed function answers. Made of its type once, at loading, and not at each call.
enum Answer {
    Value(Val),
    /// A handle of its own for each caller.
    Handle,
    /// It cannot be called by who has nothing of ours.
    Unreachable,
}

/// A linker in which all that `component` imports of files and sockets is there, and closed.
pub(super) fn link(open: &Linker<Guest>, component: &Component) -> wasmtime::Result<Linker<Guest>> {
    let engine = open.engine();
    let mut linker = open.clone();
    for (name, import) in component.component_type().imports(engine) {
        let ComponentItem::ComponentInstance(interface) = import.ty else { continue };
        if !is_closed(name) {
            continue;
        }
        let mut closed = linker.instance(name)?;
        for (item, export) in interface.exports(engine) {
            match export.ty {
                ComponentItem::Resource(_) => closed.resource(item, resource(item), |_, _| Ok(()))?,
                ComponentItem::ComponentFunc(function) => close(&mut closed, name, item, &function)?,
                _ => {}
            }
        }
    }
    Ok(linker)
}

fn is_closed(interface: &str) -> bool {
    NAMESPACES.iter().any(|namespace| interface.starts_with(namespace))
        && VERSIONS.iter().any(|version| interface.contains(version))
}

/// What an interface defines is closed with it; what it takes over from `wasi:io`, under the name that it has there, is
/// the same as there.
fn resource(name: &str) -> ResourceType {
    match name {
        "error" => ResourceType::host::<IoError>(),
        "input-stream" => ResourceType::host::<DynInputStream>(),
        "output-stream" => ResourceType::host::<DynOutputStream>(),
        "pollable" => ResourceType::host::<DynPollable>(),
        _ => ResourceType::host::<Closed>(),
    }
}

fn close(
    interface: &mut LinkerInstance<'_, Guest>,
    of: &str,
    name: &str,
    function: &ComponentFunc,
) -> wasmtime::Result<()> {
    let answers: Vec<Answer> = function.results().map(|of| Answer::of(&of)).collect();
    let unreachable = format!("{of}#{name} was called, which takes a handle that no guest is given");
    if function.async_() {
        return interface.func_new_concurrent(name, move |_, _, _, results| {
            let said = answers.iter().zip(results).try_for_each(|(answer, result)| {
                *result = answer.value().ok_or_else(|| wasmtime::Error::msg(unreachable.clone()))?;
                Ok(())
            });
            Box::pin(async move { said })
        });
    }
    interface.func_new(name, move |mut store, _, params, results| {
        for param in params {
            if let Val::Resource(lent) = param {
                give_back(*lent, &mut store)?;
            }
        }
        for (answer, result) in answers.iter().zip(results) {
            *result = match answer {
                Answer::Handle => {
                    Val::Resource(ResourceAny::try_from_resource(Resource::<Closed>::new_own(0), &mut store)?)
                }
                said => said.value().ok_or_else(|| wasmtime::Error::msg(unreachable.clone()))?,
            };
        }
        Ok(())
    })
}

/// What a guest lends for a call is counted until it is said to be done with: the network, and the error of a stream
/// (of which it asks whether a file or a socket was the cause).
fn give_back(lent: ResourceAny, store: &mut StoreContextMut<'_, Guest>) -> wasmtime::Result<()> {
    if lent.ty() == ResourceType::host::<IoError>() {
        Resource::<IoError>::try_from_resource_any(lent, store)?;
    } else {
        Resource::<Closed>::try_from_resource_any(lent, store)?;
    }
    Ok(())
}

impl Answer {
    fn of(result: &Type) -> Self {
        match result {
            Type::Result(result) => {
                result.err().as_ref().and_then(refusal).map_or(Self::Unreachable, |refusal| {
                    Self::Value(Val::Result(Err(Some(Box::new(refusal)))))
                })
            }
            Type::Option(_) => Self::Value(Val::Option(None)),
            Type::List(_) => Self::Value(Val::List(Vec::new())),
            Type::Own(_) => Self::Handle,
            _ => Self::Unreachable,
        }
    }

    fn value(&self) -> Option<Val> {
        match self {
            Self::Value(value) => Some(value.clone()),
            Self::Handle | Self::Unreachable => None,
        }
    }
}

/// The word of an interface's `error-code`, an enum in 0.2 and a variant in 0.3, for what is not allowed.
fn refusal(errors: &Type) -> Option<Val> {
    match errors {
        Type::Enum(errors) => {
            let word = errors.names().find(|name| REFUSALS.contains(name))?;
            Some(Val::Enum(word.to_owned()))
        }
        Type::Variant(errors) => {
            let case = errors.cases().find(|case| case.ty.is_none() && REFUSALS.contains(&case.name))?;
            Some(Val::Variant(case.name.to_owned(), None))
        }
        _ => None,
    }
}
