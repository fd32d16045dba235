"""Calls any method of a gRPC server as grpcurl does: by its reflection service and JSON alone.

python -I foreign_client.py ADDRESS SERVICE/METHOD JSON: nothing of this project is imported.
"""

import sys

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

DEADLINE_S = 20.0


def main(address: str, name: str, body: str) -> None:
    with grpc.insecure_channel(address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service, _, method_name = name.partition("/")
        method = pool.FindServiceByName(service).methods_by_name[method_name]
        request = json_format.Parse(
            body, GetMessageClass(method.input_type)(), descriptor_pool=pool
        )
        call = channel.unary_unary(
            f"/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        print(json_format.MessageToJson(call(request, timeout=DEADLINE_S), descriptor_pool=pool))


if __name__ == "__main__":
    main(*sys.argv[1:])
