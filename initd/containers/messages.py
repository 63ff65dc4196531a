"""The few gRPC calls and messages that initd needs of containerd and of CRI, built at run time from one table.

Field numbers and types are those of containerd's API 1.12 (services streaming, transfer, images) and
of the Kubernetes CRI, runtime.v1. A message's own name never travels, so names here only need to be unique; enums
travel as int32. Fields left out are skipped by the decoder, as protobuf wants of unknown fields.
"""

from typing import Any, NamedTuple

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

# Message: "name number type" of each field; `*type` is repeated. A map travels as a repeated message like Label.
FIELDS: dict[str, str] = {
    "Empty": "",
    "Any": "type_url 1 string, value 2 bytes",
    # containerd.services.{streaming,transfer,images}.v1 and containerd.types.transfer
    "StreamInit": "id 1 string",
    "Data": "data 1 bytes",
    "WindowUpdate": "update 1 int32",
    "TransferRequest": "source 1 Any, destination 2 Any",
    "ImageImportStream": "stream 1 string",
    "ImageReference": "name 1 string, is_prefix 2 bool, allow_overwrite 3 bool",
    "Label": "key 1 string, value 2 string",
    "ImageStore": "labels 2 *Label, extra_references 6 *ImageReference",
    "Descriptor": "digest 2 string",
    "StoredImage": "name 1 string, target 3 Descriptor",
    "ListStoredRequest": "filters 1 *string",
    "ListStoredResponse": "images 1 *StoredImage",
    # runtime.v1
    "ImageSpec": "image 1 string, user_specified_image 18 string",
    "Image": "id 1 string, repo_tags 2 *string, repo_digests 3 *string, size 4 uint64, pinned 8 bool",
    "ListImagesResponse": "images 1 *Image",
    "PodSandboxMetadata": "name 1 string, uid 2 string, namespace 3 string, attempt 4 uint32",
    "PodSandbox": "id 1 string, metadata 2 PodSandboxMetadata, state 3 int32, created_at 4 int64",
    "ListPodSandboxResponse": "items 1 *PodSandbox",
    "PodSandboxStatusRequest": "pod_sandbox_id 1 string",
    "PodSandboxNetworkStatus": "ip 1 string",
    "PodSandboxStatus": "id 1 string, network 5 PodSandboxNetworkStatus",
    "PodSandboxStatusResponse": "status 1 PodSandboxStatus",
    "ContainerMetadata": "name 1 string, attempt 2 uint32",
    "Container": (
        "id 1 string, pod_sandbox_id 2 string, metadata 3 ContainerMetadata, image 4 ImageSpec, state 6 int32, "
        "created_at 7 int64, annotations 9 *Label"
    ),
    "ListContainersResponse": "containers 1 *Container",
    "ContainerStatusRequest": "container_id 1 string",
    "ContainerStatus": (
        "id 1 string, state 3 int32, created_at 4 int64, started_at 5 int64, finished_at 6 int64, exit_code 7 int32, "
        "image 8 ImageSpec, reason 10 string"
    ),
    "ContainerStatusResponse": "status 1 ContainerStatus",
    "StopContainerRequest": "container_id 1 string, timeout 2 int64",
}

Message = Any  # the classes exist only at run time, so no checker knows their fields


class Rpc(NamedTuple):
    """One gRPC method: its path and the names of the messages that go in and out."""

    path: str
    request: str
    reply: str


STREAM = Rpc("/containerd.services.streaming.v1.Streaming/Stream", "Any", "Any")
TRANSFER = Rpc("/containerd.services.transfer.v1.Transfer/Transfer", "TransferRequest", "Empty")
LIST_STORED = Rpc("/containerd.services.images.v1.Images/List", "ListStoredRequest", "ListStoredResponse")
LIST_IMAGES = Rpc("/runtime.v1.ImageService/ListImages", "Empty", "ListImagesResponse")
LIST_PODS = Rpc("/runtime.v1.RuntimeService/ListPodSandbox", "Empty", "ListPodSandboxResponse")
POD_STATUS = Rpc("/runtime.v1.RuntimeService/PodSandboxStatus", "PodSandboxStatusRequest", "PodSandboxStatusResponse")
LIST_CONTAINERS = Rpc("/runtime.v1.RuntimeService/ListContainers", "Empty", "ListContainersResponse")
CONTAINER_STATUS = Rpc(
    "/runtime.v1.RuntimeService/ContainerStatus", "ContainerStatusRequest", "ContainerStatusResponse"
)
STOP_CONTAINER = Rpc("/runtime.v1.RuntimeService/StopContainer", "StopContainerRequest", "Empty")


def _add_field(message: Any, name: str, number: int, kind: str) -> None:
    repeated, kind = kind.startswith("*"), kind.lstrip("*")
    label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    if kind.islower():
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".initd.{kind}"


def _build() -> dict[str, Message]:
    file = FileDescriptorProto(name="initd.proto", package="initd", syntax="proto3")
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for text in filter(None, fields.split(", ")):
            field, number, kind = text.split()
            _add_field(message, field, int(number), kind)
    pool = DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"initd.{name}")) for name in FIELDS}


MESSAGES = _build()
