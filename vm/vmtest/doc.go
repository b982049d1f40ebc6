// Package vmtest is the conformance suite that every driver of package vm
// passes: what Machine promises about vsock connections, and about its end.
//
// Run asks the driver's test for machines with vmtest/guest in them; Guest
// makes the files that a hypervisor boots to get one. On Linux a test is
//
//	func TestConformance(t *testing.T) {
//		kernel, initrd, arch := vmtest.Guest(t)
//		vmtest.Run(t, func(t *testing.T) vm.Machine { … Boot … })
//	}
package vmtest
