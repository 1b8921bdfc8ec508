# Reads the detection histories in this folder into R.
#
#   source("read_histories.R")
#   histories <- read_histories(".")
#   y <- histories$y["combul2", , ]     # sites x occasions: 1 detected, 0 not detected, NA no information
#
#   library(unmarked)
#   frame <- unmarkedFrameOccu(y, siteCovs = histories$sites, obsCovs = list(effort_h = histories$effort_h))
#   occu(~ effort_h ~ 1, frame)
#
#   library(spOccupancy)                # one species: y is sites x occasions; several: species x sites x occasions
#   y <- histories$y[histories$species$has_threshold == 1, , ]   # these have NA at the same places
#   data <- list(y = y, det.covs = list(effort_h = histories$effort_h), occ.covs = histories$sites)

read_histories <- function(folder = ".") {
  read_matrix <- function(path) {
    table <- read.csv(path, check.names = FALSE, colClasses = c(site = "character"))
    values <- as.matrix(table[, -1, drop = FALSE])
    rownames(values) <- table$site
    values
  }
  species <- read.csv(file.path(folder, "species.csv"), stringsAsFactors = FALSE)
  effort_h <- read_matrix(file.path(folder, "effort_h.csv"))
  y <- array(
    NA_real_,
    dim = c(nrow(species), dim(effort_h)),
    dimnames = c(list(species$code), dimnames(effort_h))
  )
  for (row in seq_len(nrow(species))) {
    y[row, , ] <- read_matrix(file.path(folder, species$matrix[row]))
  }
  list(
    y = y,
    effort_h = effort_h,
    species = species,
    sites = read.csv(file.path(folder, "sites.csv"), stringsAsFactors = FALSE, colClasses = c(site = "character")),
    occasions = read.csv(file.path(folder, "occasions.csv"), stringsAsFactors = FALSE)
  )
}
