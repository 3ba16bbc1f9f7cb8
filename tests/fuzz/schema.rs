//! The contract's messages, twice: as they are, and loosened, so that a request can hold what the contract forbids.
//!
//! Loosened means: strings are bytes, enums are integers, maps are repeated entries. Each is the same on the wire.

use cell_directory::proto;
use prost::Message;
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

/// A method of the contract.
#[derive(Clone)]
pub struct Method {
    /// `package.Service/Method`.
    pub name: String,
    /// The request, loosened.
    pub request: MessageDescriptor,
    /// The request as it is, for what loosening takes away.
    pub strict: MessageDescriptor,
    pub response: MessageDescriptor,
    pub client_streams: bool,
}

impl Method {
    /// The name without its service.
    pub fn short(&self) -> &str {
        self.name.rsplit('/').next().unwrap()
    }
}

/// Every method of every service.
pub fn methods() -> Vec<Method> {
    let strict = DescriptorPool::decode(proto::DESCRIPTORS).unwrap();
    let loose = loosened();
    // Items need an engine that holds them: tests/cells sends what is wrong with those.
    let services = strict
        .services()
        .filter(|service| !matches!(service.name(), "CellData" | "CellEvents" | "CellRecovery"));
    let methods = services.flat_map(|service| service.methods().collect::<Vec<_>>());
    let methods = methods.map(|method| Method {
        name: format!("{}/{}", method.parent_service().full_name(), method.name()),
        request: loose.get_message_by_name(method.input().full_name()).unwrap(),
        strict: method.input(),
        response: method.output(),
        client_streams: method.is_client_streaming(),
    });
    methods.collect()
}

fn loosened() -> DescriptorPool {
    let mut files = FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
    for file in &mut files.file {
        file.message_type.iter_mut().for_each(loosen);
    }
    DescriptorPool::from_file_descriptor_set(files).unwrap()
}

fn loosen(message: &mut DescriptorProto) {
    for field in &mut message.field {
        match field.r#type() {
            Type::String => field.set_type(Type::Bytes),
            Type::Enum => {
                field.set_type(Type::Int32);
                field.type_name = None;
            }
            _ => {}
        }
    }
    if let Some(options) = &mut message.options {
        options.map_entry = None;
    }
    message.nested_type.iter_mut().for_each(loosen);
}

/// The numbers that a field's enum has, if the field was an enum.
pub fn enum_numbers(strict: &MessageDescriptor, field: &FieldDescriptor) -> Option<Vec<i32>> {
    match strict.get_field(field.number())?.kind() {
        Kind::Enum(values) => Some(values.values().map(|value| value.number()).collect()),
        _ => None,
    }
}

/// The message that a field of a strict message holds; a map's entry for a map.
pub fn strict_child(strict: &MessageDescriptor, field: &FieldDescriptor) -> MessageDescriptor {
    let Kind::Message(child) = strict.get_field(field.number()).unwrap().kind() else {
        panic!("{} holds no message", field.full_name());
    };
    child
}
