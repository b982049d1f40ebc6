// Package proto is everything that host and guest agree on: the control
// protocol (agent.proto), the byte streams beside it, port numbers and names.
//
// The guest's agent opens one connection to the host when it is ready:
//
//	guest                                host
//	  |------ vsock connect CID 2:PortControl ----->|
//	  |<------------- ttrpc: Configure -------------|   versions, clock, network
//	  |<------------- ttrpc: Start, Wait … ---------|
//
// and accepts any number of byte streams, each a vsock connection of its own
// that begins with one line of JSON (StreamHeader):
//
//	host                                 guest
//	  |------ vsock connect guest:PortStream ------>|
//	  |------ {"kind":"stdio",…}\n ---------------->|
//	  |<=============== raw bytes =================>|
//
// The other way round, the agent opens one for each connection of a container
// to a UNIX socket of the host:
//
//	guest                                host
//	  |------ vsock connect CID 2:PortRelay ------->|
//	  |------ {"kind":"socket",…}\n --------------->|
//	  |<=============== raw bytes =================>|
//
// Nothing is negotiated: both sides are built together, and Configure refuses
// a Version that differs.
package proto

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative agent.proto

// Version of the protocol. It changes with every incompatible change to
// agent.proto or to the streams.
const Version = 10

// vsock ports. The numbers are ours; 1024 is the first unprivileged one.
const (
	// PortControl is where the host listens for the agent.
	PortControl = 1024
	// PortStream is where the agent listens for byte streams.
	PortStream = 1025
	// PortForward is where the agent listens for streams of the kind StreamDial
	// and the network "tcp".
	PortForward = 1027
	// PortRelay is where the host listens for streams to its UNIX sockets.
	PortRelay = 1026
)

// Tags of the virtio-fs shares.
const (
	// ShareImages holds the EROFS layers, read-only.
	ShareImages = "images"
	// ShareHost holds one directory entry per exported host path.
	ShareHost = "host"
)

// DataDiskSerial is the serial number of the virtio-blk device that holds
// writable layers and volumes; the guest finds it by this name
// (at most 20 bytes: virtio 1.2, 5.2.6.1).
const DataDiskSerial = "sampan-data"

// StageConnected names the agent's boot stage at which the control connection
// stands; the host sees it at the same moment, and so knows when the guest's
// other stages were.
const StageConnected = "connected"
