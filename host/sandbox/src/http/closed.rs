//! The parts of WASI that no guest is ever given, files and sockets: linked, because language runtimes import all of it
//! to start, and closed. No code that opens a file or a socket for a guest is linked into the process.
//!
//! A function of theirs answers with its interface's own word for no (`access-denied`, `not-permitted`) or with nothing
//! (no directories, no error code). Where its type has room for neither it takes a descriptor or a socket, and as nobody
//! has one, a call of it ends the guest.
//!
//! Which functions there are is read from the component, so that the next minor version of WASI is closed as well. And
//! they have no types of their own in the host: the typed ones of both versions were half of what this crate compiled.

use wasmtime::component::types::{ComponentFunc, ComponentItem};
use wasmtime::component::{
    Component, Linker, LinkerInstance, Resource, ResourceAny, ResourceType, Type, Val,
};
use wasmtime::{StoreContextMut, format_err};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, IoError};

const NAMESPACES: [&str; 2] = ["wasi:filesystem/", "wasi:sockets/"];
const VERSIONS: [&str; 2] = ["@0.2.", "@0.3."];
/// What these interfaces say to somebody who may not.
const REFUSALS: [&str; 2] = ["access-denied", "not-permitted"];

/// A descriptor, a socket, a stream of directory entries: there is none. The network itself, which a guest can hold and
/// do nothing with; it has its place among the guest's handles, and their limit holds.
struct Closed;

/// What a closed function answers. Made of its type once, at loading, and not at each call.
enum Answer {
    Value(Val),
    /// A handle of its own for each caller.
    Handle,
}

/// A linker in which all that `component` imports of files and sockets is there, and closed.
pub(super) fn link<T: WasiView + 'static>(
    open: &Linker<T>,
    component: &Component,
) -> wasmtime::Result<Linker<T>> {
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
                ComponentItem::Resource(_) => define(&mut closed, item)?,
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
fn define<T: WasiView + 'static>(interface: &mut LinkerInstance<'_, T>, name: &str) -> wasmtime::Result<()> {
    let open = match name {
        "error" => ResourceType::host::<IoError>(),
        "input-stream" => ResourceType::host::<DynInputStream>(),
        "output-stream" => ResourceType::host::<DynOutputStream>(),
        "pollable" => ResourceType::host::<DynPollable>(),
        _ => {
            return interface.resource(name, ResourceType::host::<Closed>(), |mut store, handle| {
                store.data_mut().ctx().table.delete(Resource::<Closed>::new_own(handle))?;
                Ok(())
            });
        }
    };
    // `wasi:io` itself says how one of its own ends.
    interface.resource(name, open, |_, _| Ok(()))
}

fn close<T: WasiView + 'static>(
    interface: &mut LinkerInstance<'_, T>,
    of: &str,
    name: &str,
    function: &ComponentFunc,
) -> wasmtime::Result<()> {
    let answers = answers(function);
    let unreachable = format!("{of}#{name} was called, which takes what no guest is given");
    if function.async_() {
        return interface.func_new_concurrent(name, move |_, _, _, results| {
            let said = answers.as_ref().map_or_else(
                || Err(format_err!("{unreachable}")),
                |answers| {
                    for (answer, result) in answers.iter().zip(results) {
                        match answer {
                            Answer::Value(value) => *result = value.clone(),
                            Answer::Handle => wasmtime::bail!("{unreachable}"),
                        }
                    }
                    Ok(())
                },
            );
            Box::pin(async move { said })
        });
    }
    interface.func_new(name, move |mut store, _, params, results| {
        let answers = answers.as_ref().ok_or_else(|| format_err!("{unreachable}"))?;
        for param in params {
            if let Val::Resource(lent) = param {
                give_back(*lent, &mut store)?;
            }
        }
        for (answer, result) in answers.iter().zip(results) {
            *result = match answer {
                Answer::Value(value) => value.clone(),
                Answer::Handle => {
                    let handle = store.data_mut().ctx().table.push(Closed)?;
                    Val::Resource(ResourceAny::try_from_resource(handle, &mut store)?)
                }
            };
        }
        Ok(())
    })
}

/// What a guest lends for a call is counted until it is said to be done with: the network, and the error of a stream
/// (of which it asks whether a file or a socket was the cause).
fn give_back<T: 'static>(lent: ResourceAny, store: &mut StoreContextMut<'_, T>) -> wasmtime::Result<()> {
    if lent.ty() == ResourceType::host::<IoError>() {
        Resource::<IoError>::try_from_resource_any(lent, store)?;
    } else {
        Resource::<Closed>::try_from_resource_any(lent, store)?;
    }
    Ok(())
}

/// What a function answers; none of one that is not for who has nothing: the call ends the guest.
fn answers(function: &ComponentFunc) -> Option<Vec<Answer>> {
    let lends = !function.async_();
    let is_harmless = function.params().all(|(_, param)| is_harmless(&param, lends));
    is_harmless.then(|| function.results().map(|result| Answer::of(&result)).collect())?
}

/// Whether nothing is left of an argument that nobody looks at. A stream, say, would stay with the host until the store
/// ends, where no limit counts it. No function that can be called without a descriptor or a socket takes more than this.
fn is_harmless(param: &Type, lends: bool) -> bool {
    match param {
        Type::Bool | Type::String | Type::Char | Type::Enum(_) | Type::Flags(_) => true,
        Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::S8 | Type::S16 | Type::S32 | Type::S64 => true,
        Type::Borrow(_) => lends,
        _ => false,
    }
}

impl Answer {
    fn of(result: &Type) -> Option<Self> {
        match result {
            Type::Result(result) => {
                let refusal = result.err().as_ref().and_then(refusal)?;
                Some(Self::Value(Val::Result(Err(Some(Box::new(refusal))))))
            }
            Type::Option(_) => Some(Self::Value(Val::Option(None))),
            Type::List(_) => Some(Self::Value(Val::List(Vec::new()))),
            Type::Own(_) => Some(Self::Handle),
            _ => None,
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

#[cfg(test)]
mod tests;
