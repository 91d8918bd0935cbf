// DLPack's exchange API: C functions by which a class of tensors is read and made. Layouts are those of dlpack.h 1.3
// (github.com/dmlc/dlpack, Apache-2.0), which promises them for all of version 1; torch has the API since 2.10.
#pragma once
#include <stdint.h>

namespace qk {
namespace dlpack {

enum DeviceType : int32_t { kCpu = 1 };
enum TypeCode : uint8_t { kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4 };

struct Device {
  int32_t type, id;
};
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  int32_t dims;
  DataType type;
  int64_t *shape, *strides;  // in elements; no strides: adjacent
  uint64_t byte_offset;
};
struct Version {
  uint32_t major, minor;
};
struct Managed {
  Version version;
  void* context;
  void (*deleter)(Managed* self);
  uint64_t flags;
  Tensor tensor;
};
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  int (*allocate)(Tensor* prototype, Managed** out, void* error,
                  void (*set_error)(void* error, const char* kind, const char* message));
  int (*managed_from_object)(void* object, Managed** out);
  int (*object_from_managed)(Managed* tensor, void** out);  // takes the tensor
  int (*tensor_from_object)(void* object, Tensor* out);     // borrowed; may be null
  int (*work_stream)(int32_t device_type, int32_t device_id, void** out);
};

constexpr const char* kAttribute = "__dlpack_c_exchange_api__";
constexpr const char* kCapsule = "dlpack_exchange_api";

}  // namespace dlpack
}  // namespace qk
