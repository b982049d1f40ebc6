// Package layer converts an image layer, a tar stream, into one EROFS image
// that overlayfs takes as a lower directory, and, by a recipe, back into the
// very same tar.
//
// What a container sees is what GNU tar, extracting into an empty directory,
// and overlayfs above the layers below would show. In detail:
//
//   - The last entry of a name wins. A directory entry for a directory keeps
//     what is in it; everything else is replaced with all below it.
//   - Missing parents are made with mode 0755, owned by root, dated 1970.
//   - A symbolic link of the layer among an entry's parents is followed, never
//     out of the layer's root, as a process with that root would.
//   - Names are cleaned by their text ("a/../b" is "b", "/b" is "b"); one that
//     then starts with ".." is refused. So is a hard link to what is not in
//     the layer.
//   - ".wh.NAME" hides NAME of the layers below: a 0:0 character device. If
//     the layer has NAME itself, that stays, and a directory hides the one
//     below. ".wh..wh..opq" hides all that its directory has below:
//     trusted.overlay.opaque. Other names that start with ".wh..wh." are
//     notes of aufs and are left out.
//   - Extended attributes that Linux could not hold are left out, and so is
//     trusted.overlay.*, which is overlayfs's own.
//
// The stream is hostile: sizes, the number of entries and the length of names
// are bounded, and an error leaves an unusable image for the caller to delete.
package layer
