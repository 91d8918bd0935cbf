# libqkernels: the kernels behind the C API (csrc/include/qkernels.h), without Python. The wheel carries it, its header,
# a CMake package and a pkg-config file below qkernels/; all of them find one another relative to where they lie.
add_library(qkernels SHARED csrc/capi/call.cpp csrc/capi/conv.cpp csrc/capi/elementwise.cpp csrc/capi/epilogue.cpp
                            csrc/capi/groups.cpp csrc/capi/kernels.cpp csrc/capi/network.cpp csrc/capi/pack.cpp
                            csrc/capi/pools.cpp csrc/capi/products.cpp csrc/capi/search.cpp)
target_compile_definitions(qkernels PRIVATE QKERNELS_BUILD)
target_compile_options(qkernels PRIVATE -fno-exceptions -fno-rtti)
# Nothing but the API is seen from outside, not even what the C++ library's templates leave behind.
set(exports ${CMAKE_SOURCE_DIR}/csrc/capi/exports.map)
target_link_options(qkernels PRIVATE -Wl,--version-script=${exports})
set_target_properties(qkernels PROPERTIES LINK_DEPENDS ${exports})

set(QKERNELS_PREFIX qkernels CACHE STRING "Where the library is installed, below the prefix")
install(TARGETS qkernels LIBRARY DESTINATION ${QKERNELS_PREFIX}/lib)
install(DIRECTORY csrc/include DESTINATION ${QKERNELS_PREFIX})
install(FILES csrc/capi/qkernels-config.cmake csrc/capi/qkernels-config-version.cmake
        DESTINATION ${QKERNELS_PREFIX}/lib/cmake/qkernels)
install(FILES csrc/capi/qkernels.pc DESTINATION ${QKERNELS_PREFIX}/lib/pkgconfig)
