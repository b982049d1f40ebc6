// Package vz runs machines with macOS's Virtualization.framework, through
// github.com/Code-Hex/vz. On other systems it is empty.
//
// It needs cgo, macOS 12.3, and a program signed with the entitlement
// com.apple.security.virtualization. The machine lives in this process: there
// is no child to supervise. Package vz/typecheck holds it to the library's
// real API on systems without a Mac's tools.
//
// What differs from vm/qemu:
//
//   - Shares are the framework's: Share.Dirs is used, Share.Server is not.
//   - The framework restarts a guest that resets itself, a panic with panic=-1
//     included, and tells nobody. Wait goes on waiting.
//   - Why a machine stopped with an error is told to the framework's delegate
//     only, which the library does not hand on.
//
// Hazards of the library, v3.7.1:
//
//   - File handles given to the framework are not owned by it: each *os.File
//     must be kept until the machine has ended, or its finalizer closes the
//     descriptor under the guest.
//   - VirtioSocketListener.Close does not wake Accept. See listener.
//   - VirtioSocketConnection has no CloseWrite and hides the connection that
//     does. See newConn.
//   - Connect may never answer when the machine ends meanwhile.
package vz
