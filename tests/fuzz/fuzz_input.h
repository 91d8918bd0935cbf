// What the bytes of a fuzzer's input become: numbers, and memory that ends where the arguments say it does.
#pragma once
#include <qkernels.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <vector>

namespace {

constexpr double kMost = 1 << 16;  // bytes behind a pointer, and products of a call: a thousand calls a second

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint8_t byte() { return at_ < size_ ? data_[at_++] : 0; }
  bool once_in(int n) { return byte() % n == n - 1; }

  // Mostly small, sometimes at the edges of what is allowed, and beyond.
  int64_t number() {
    const uint8_t kind = byte();
    static const int64_t odd[] = {0,         -1,        1,         int64_t(1) << 31, (int64_t(1) << 31) - 1, INT64_MAX,
                                  INT64_MIN, INT32_MIN, INT32_MAX, int64_t(1) << 62, -(int64_t(1) << 31),    1 << 20};
    if (kind >= 248) return odd[byte() % 12];
    if (kind >= 240) {
      uint64_t x = 0;
      for (int i = 0; i < 8; ++i) x = x << 8 | byte();
      return int64_t(x);
    }
    return kind >= 200 ? int64_t(byte()) : 1 + kind % 40;
  }
  int32_t small(int32_t low, int32_t high) { return once_in(64) ? int32_t(number()) : low + byte() % (high - low + 1); }
  size_t size_of(size_t size) {
    if (!once_in(32)) return size;
    return once_in(2) ? size_t(number()) : size + 8;
  }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

// Memory of one call: each block ends where what was promised ends.
class Memory {
 public:
  explicit Memory(Input& in) : in_(in) {}

  // NULL now and then, and where it would be too much: the call is then not `possible`.
  void* block(double bytes, bool may_be_null = true) {
    if (may_be_null && in_.once_in(48)) return nullptr;
    if (!(bytes >= 0 && bytes <= kMost)) {
      possible = false;
      return nullptr;
    }
    blocks_.emplace_back(new uint8_t[size_t(bytes) + 1]);
    uint8_t* const data = blocks_.back().get();
    for (size_t i = 0; i < size_t(bytes); ++i) data[i] = uint8_t(i * 37 + bytes_);
    bytes_ += 11;
    return data;
  }
  // Whose alignment counts: malloc's.
  template <class T>
  T* values(double count, bool may_be_null = true) {
    if (may_be_null && in_.once_in(48)) return nullptr;
    if (!(count >= 0 && count * sizeof(T) <= kMost)) {
      possible = false;
      return nullptr;
    }
    T* const data = static_cast<T*>(malloc(size_t(count) * sizeof(T) + 1));
    memset(data, 0, size_t(count) * sizeof(T));
    for (size_t i = 0; i < size_t(count); ++i) data[i] = T(i % 7 + 1);
    owned_.emplace_back(data, free);
    return data;
  }
  void* lines(size_t bytes) {
    void* const data = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    owned_.emplace_back(data, free);
    memset(data, 3, bytes);
    return data;
  }

  // A struct behind which its size says is more: zeros, or not.
  template <class T>
  T* extended(const T& value) {
    if (value.size > 4096) {
      possible = possible && value.size > 4096;
    }
    const size_t room = value.size > sizeof(T) && value.size <= 4096 ? value.size : sizeof(T);
    uint8_t* const data = static_cast<uint8_t*>(calloc(1, room));
    memcpy(data, &value, sizeof(T));
    if (room > sizeof(T) && in_.once_in(2)) data[room - 1] = 1;
    owned_.emplace_back(data, free);
    return reinterpret_cast<T*>(data);
  }

  bool possible = true;

 private:
  Input& in_;
  std::vector<std::unique_ptr<uint8_t[]>> blocks_;
  std::vector<std::unique_ptr<void, void (*)(void*)>> owned_;
  int bytes_ = 1;
};

void pool(void*, int32_t tasks, qk_task task, void* context) {
  for (int32_t i = tasks; i-- > 0;) task(context, i);
}

long seen[8];  // statuses

int32_t noted(int32_t status) {
  ++seen[status >= 0 && status < 7 ? status : 7];
  return status;
}

}  // namespace
