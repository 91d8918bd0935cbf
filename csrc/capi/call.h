// What every function of the C API has in common: structs of any version read safely, words for what went wrong, and the
// caller's threads and memory put in force for the time of a call. Nothing here throws or allocates.
#pragma once
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <initializer_list>

#include "../cpu/threads.h"
#include "../include/qkernels.h"
#include "../kernel.h"

namespace qk::capi {

constexpr int64_t kMost = int64_t(1) << 31;  // of every size
constexpr double kMostBytes = 1e15;          // of every product of sizes, so that no index can overflow
constexpr size_t kMostStruct = 4096;         // a struct's size beyond is no version but rubbish
constexpr size_t kLine = 64;                 // workspaces are divided into cache lines
constexpr int32_t kMostTasks = 256;

// Where words go.
struct Say {
  char* text;
  size_t bytes;

  int32_t operator()(int32_t status, const char* format, ...) const __attribute__((format(printf, 3, 4))) {
    if (text && bytes > 0) {
      va_list values;
      va_start(values, format);
      vsnprintf(text, bytes, format, values);
      va_end(values);
    }
    return status;
  }
};

static inline Say say_to(char* message, size_t bytes) {
  if (message && bytes > 0) *message = 0;
  return {message, bytes};
}

// The caller's struct as this library knows it. Of an older program its end is zero; what a newer one adds must be zero,
// as it is with Linux's extensible system calls. `least`: bytes of the first version.
template <class T>
int32_t read_struct(const T* from, T& to, const char* name, const Say& say) {
  constexpr size_t kLeast = sizeof(T);  // the first version is the current one
  if (!from) return say(QK_NULL_POINTER, "%s is NULL", name);
  size_t size;
  memcpy(&size, from, sizeof size);
  if (size < kLeast || size > kMostStruct)
    return say(QK_BAD_STRUCT, "%s.size is %zu, wanted sizeof(%s), here %zu", name, size, name, sizeof(T));
  for (size_t i = sizeof(T); i < size; ++i)
    if (reinterpret_cast<const char*>(from)[i])
      return say(QK_BAD_STRUCT, "%s.size is %zu, and byte %zu, which this library does not know, is not zero", name,
                 size, i);
  memcpy(&to, from, sizeof(T));
  return QK_OK;
}

// A struct that the library fills: room for this version must be there.
template <class T>
int32_t check_room(const T* to, const char* name, const Say& say) {
  if (!to) return say(QK_NULL_POINTER, "%s is NULL", name);
  if (to->size < sizeof(T) || to->size > kMostStruct)
    return say(QK_BAD_STRUCT, "%s.size is %zu, wanted sizeof(%s), here %zu", name, to->size, name, sizeof(T));
  return QK_OK;
}

struct Limits {  // of a type of codes; of others, of int32
  int32_t low, high;
};

static inline Limits limits_of(int32_t type) {
  switch (type) {
    case QK_S8:
      return {-128, 127};
    case QK_U8:
      return {0, 255};
    case QK_S16:
      return {-32768, 32767};
    case QK_U16:
      return {0, 65535};
    default:
      return {INT32_MIN, INT32_MAX};
  }
}

static inline bool fits(double bytes) { return bytes <= kMostBytes; }

// Of a matrix whose rows and columns lie at strides: all its indices are within bounds that no arithmetic leaves.
static inline bool strides_fit(int64_t rows, int64_t row, int64_t columns, int64_t column) {
  const double reach = double(rows) * double(row < 0 ? -double(row) : double(row)) +
                       double(columns) * double(column < 0 ? -double(column) : double(column));
  return fits(reach);
}

static inline size_t lines(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// What a call needs: beside its tasks, and for each of them.
struct Room {
  size_t call, task;

  size_t bytes(int32_t tasks) const {
    const size_t all = lines(call) + lines(task) * size_t(tasks > 1 ? tasks : 1);
    return all ? all + kLine : 0;
  }
};

// The caller's host, in force while it lives.
class Hosted {
 public:
  int32_t begin(const qk_host* given, const Room& room, const Say& say);
  static int32_t tasks_of(const qk_host* given, int32_t* tasks, const Say& say);  // what begin will take them for
  ~Hosted() {
    if (begun_) set_host(before_);
  }
  int tasks() const { return host_.tasks; }

 private:
  Host host_ = {};
  HostPlace* before_ = nullptr;
  HostPlace place_ = {};
  bool begun_ = false;
};

// What a call with these arguments will want of its caller's memory. `read` makes a Call of them, as the call itself does,
// but for pointers that a query may leave out.
template <class Call, class Args>
int32_t workspace(int32_t (*read)(const Args*, bool query, Call&, const Say&), const Args* args, int32_t tasks,
                  size_t* bytes, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  if (!bytes) return say(QK_NULL_POINTER, "bytes is NULL");
  Call c;
  if (const int32_t status = read(args, true, c, say)) return status;
  *bytes = c.room.bytes(tasks);
  return QK_OK;
}

}  // namespace qk::capi
