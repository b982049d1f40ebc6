// Package image is the image store: it pulls images from registries, loads
// them from archives, and keeps each layer as one EROFS file that the guest
// mounts. Nothing is ever unpacked.
//
//	layers/HEX.erofs   a layer by the digest of its tar (diff ID); read-only,
//	                   shared with the guest as it is
//	recipes/HEX        how to make the layer's tar again from that, see package
//	                   layer
//	blobs/HEX          configurations and manifests by their digest
//	index.json         which images, names and layers there are
//	tmp/               what is being made
//
// The index is the truth: a file that it doesn't mention is not there, and is
// deleted by Open. So everything is written in this order, and removed in the
// opposite one: the file under tmp, fsync, rename, fsync of the folder, and
// then the index, in the same way. A crash at any point leaves what was before
// or what should be after.
//
// Layers are counted in two ways: by the images of the index, and by Hold, for
// whoever uses files without an image (a container whose image was removed, a
// pull on its way). A layer is deleted when neither is left, by whoever lets go
// of it last.
//
// Every digest is verified (manifest, configuration, layer as transferred,
// layer as a tar) before anything is stored. What others sent us is bounded by
// Limits.
package image
