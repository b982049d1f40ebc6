package image

import (
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// parseName parses what a user calls an image, as a full name with a tag or a
// digest.
func parseName(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, &classed{text: err.Error(), class: ErrInvalid, cause: err}
	}
	if canonical, ok := named.(reference.Canonical); ok {
		// Of "name:tag@digest" the digest decides.
		named, err = reference.WithDigest(reference.TrimNamed(named), canonical.Digest())
		if err != nil {
			return nil, &classed{text: "invalid reference format", class: ErrInvalid, cause: err}
		}
		return named, nil
	}
	return reference.TagNameOnly(named), nil
}

// parseTag parses a name that an image is to get.
func parseTag(ref string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", &classed{text: "invalid reference format", class: ErrInvalid, cause: err}
	}
	if _, ok := named.(reference.Digested); ok {
		return "", errorOf(ErrInvalid, "refusing to create a tag with a digest reference")
	}
	if reference.FamiliarName(named) == "sha256" {
		return "", errorOf(ErrInvalid, "refusing to create an ambiguous tag using digest algorithm as name")
	}
	return reference.TagNameOnly(named).String(), nil
}

// familiar shortens a full name as Docker does.
func familiar(full string) string {
	named, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return full
	}
	return reference.FamiliarString(named)
}

// repository is a full name without tag and digest.
func repository(full string) string {
	named, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return full
	}
	return named.Name()
}

// resolve finds the ID of an image; see Store.Get.
func (ix *index) resolve(ref string) (string, error) {
	if id, ok := ix.byID(ref); ok && (len(hexOf(ref)) == 64) {
		return id, nil
	}
	named, err := parseName(ref)
	if err == nil {
		if id, ok := ix.Names[named.String()]; ok {
			return id, nil
		}
	}
	if id, ok := ix.byID(ref); ok {
		return id, nil
	}
	switch {
	case isID(ref) && len(hexOf(ref)) == 64:
		return "", errorOf(ErrNotFound, "No such image: sha256:%s", hexOf(ref))
	case err != nil:
		return "", err
	}
	return "", errorOf(ErrNotFound, "No such image: %s", reference.FamiliarString(named))
}

// byID finds the image whose ID ref is, or is the beginning of, if it is one.
func (ix *index) byID(ref string) (string, bool) {
	if !isID(ref) {
		return "", false
	}
	found := ""
	for id := range ix.Images {
		if strings.HasPrefix(hexOf(id), hexOf(ref)) {
			if found != "" {
				return "", false
			}
			found = id
		}
	}
	return found, found != ""
}

// isID reports whether ref can be an ID or the beginning of one.
func isID(ref string) bool {
	hex := hexOf(ref)
	return hex != "" && len(hex) <= 64 && strings.Trim(hex, "0123456789abcdef") == ""
}

// references are the full names of an image, sorted.
func (ix *index) references(id string) []string {
	var refs []string
	for name, of := range ix.Names {
		if of == id {
			refs = append(refs, name)
		}
	}
	slices.Sort(refs)
	return refs
}
